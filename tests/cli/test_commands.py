"""The program as a whole, and the commands that run a model, but chat, in this process."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lattice
from lattice.cli import _generate
from lattice.generate import TokenLogprob

COMMANDS = ["embed", "run", "chat", "pull", "list", "show", "rm", "bench", "doctor", "eval"]


# ---- the program -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["eval", "ppl"], ["eval", "compare"]])
def test_help_has_an_example(cli, command):
    done = cli(*command, "--help")
    assert done.exit_code == 0
    assert f"$ lattice {' '.join(command)}".strip() in done.stdout
    assert "\x1b" not in done.output


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "eval"] + ["eval ppl", "eval compare"])
def test_every_command_has_json(cli, command):
    assert "--json" in cli(*command.split(), "--help").stdout


def test_version(cli):
    assert cli("--version").stdout == f"lattice {lattice.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["embed"],
        ["embed", "--nonsense"],
        ["embed", "--query", "--document", "w1"],
        ["embed", "--query", "--prompt-name", "query", "w1"],
        ["run"],
        ["pull"],
        ["show"],
        ["rm"],
        ["eval", "ppl"],
        ["eval", "compare"],
        ["bench", "--runs", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(cli, arguments, refused):
    refused(cli(*arguments), "Error:", code=2)


# ---- embed -------------------------------------------------------------------------------------------------
def test_embed_json(cli, encoder, result_of):
    got = result_of(cli("embed", "--model", encoder, "--json", "w1 w2", "w3"))
    assert list(got) == ["model", "dimensions", "embeddings"]
    assert (got["model"], got["dimensions"]) == (encoder, 32)
    expected = lattice.load_encoder(encoder).encode(["w1 w2", "w3"])
    assert np.array_equal(np.float32(got["embeddings"]), expected)


def test_embed_reads_lines_of_a_file_and_of_standard_input(cli, encoder, tmp_path, result_of):
    (tmp_path / "lines").write_text("w3\n\nw4\n", "utf-8")
    from_file = result_of(cli("embed", "-m", encoder, "--json", "w1 w2", "--file", tmp_path / "lines"))
    from_stdin = result_of(cli("embed", "-m", encoder, "--json", "--file", "-", input="w1 w2\nw3\n\nw4\n"))
    assert len(from_file["embeddings"]) == 4
    assert from_file == from_stdin


def test_embed_options(cli, encoder, result_of):
    model = lattice.load_encoder(encoder, dtype="f32")
    got = result_of(cli("embed", "-m", encoder, "--json", "--dimensions", 5, "--no-normalize", "--dtype", "f32", "w1"))
    assert got["dimensions"] == 5
    assert np.array_equal(np.float32(got["embeddings"]), model.encode(["w1"], dimensions=5, normalize=False))


def test_embed_prompts(cli, golden, result_of, refused):
    model = golden / "embedders" / "xlm-roberta"
    encoder, texts = lattice.load_encoder(model), ["a cat", "привет"]
    for options, wanted in [
        (["--query"], encoder.encode_query(texts)),
        (["--document"], encoder.encode_document(texts)),
        (["--prompt-name", "passage"], encoder.encode(texts, prompt_name="passage")),
        (["--query", "--dimensions", "8"], encoder.encode_query(texts, dimensions=8)),
    ]:
        got = result_of(cli("embed", "-m", model, "--json", *options, *texts))
        assert np.array_equal(np.float32(got["embeddings"]), wanted)
    refused(cli("embed", "-m", model, "--prompt-name", "clustering", "a"), "document, passage, query, got 'clustering'")


def test_embed_prints_vectors_and_cosines(cli, encoder):
    done = cli("embed", "-m", encoder, "w1 w2", "w3 \x1b[31m")
    vectors = lattice.load_encoder(encoder).encode(["w1 w2", "w3 \x1b[31m"])
    assert "2 texts, 32 dimensions" in done.stdout
    assert f"{vectors[0, 0]:+.4f}" in done.stdout
    assert f"{float(vectors[0] @ vectors[1]):.3f}" in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.output
    assert "cosine" not in cli("embed", "-m", encoder, "w1").stdout


def test_embed_warns_of_texts_that_were_cut(cli, encoder, result_of):
    done = cli("embed", "-m", encoder, "--json", " ".join(["w1"] * 40))
    assert result_of(done)["dimensions"] == 32
    assert done.stderr.startswith("warning: [encode]") and "1 of 1" in done.stderr
    assert "LatticeWarning" not in done.stderr


def test_embed_errors(cli, encoder, base_model, golden, tmp_path, refused):
    refused(cli("embed", "-m", "no-such-model", "w1"), "error: [source]", "hint:")
    refused(cli("embed", "-m", encoder, "--dimensions", 99, "w1"), "dimensions from 1 to 32")
    refused(cli("embed", "-m", encoder, "--file", tmp_path / "none"), "none", "No such file")
    refused(cli("embed", "-m", golden / "models" / "bert-gelu", "w1"), "1_Pooling/config.json")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    refused(cli("embed", "-m", encoder, "--file", tmp_path / "latin"), "UTF-8")


# ---- run ---------------------------------------------------------------------------------------------------
def test_run_json(cli, chat_model, result_of):
    got = result_of(cli("run", "-m", chat_model, "--json", "-n", 6, "w1 w2"))
    assert list(got) == ["model", "text", "finish_reason", "tokens", "usage", "timings"]
    expected = lattice.load(chat_model).generate([{"role": "user", "content": "w1 w2"}], max_tokens=6)
    assert (got["text"], got["tokens"], got["finish_reason"]) == (expected.text, expected.tokens, "length")
    usage = {"prompt_tokens": 7, "reused_tokens": 0, "completion_tokens": 6, "total_tokens": 13}
    assert got["usage"] == usage
    assert got["timings"]["tokens_per_second"] > 0


def test_run_streams_the_same_text(cli, chat_model, result_of):
    text = result_of(cli("run", "-m", chat_model, "--json", "-n", 6, "w1 w2"))["text"]
    done = cli("run", "-m", chat_model, "-n", 6, "w1 w2")
    assert (done.stdout, done.stderr) == (f"{text}\n", "")
    assert "tokens/s" in cli("run", "-m", chat_model, "-n", 6, "-v", "w1 w2").stderr


def test_run_raw_system_and_standard_input(cli, chat_model, result_of, refused):
    model = lattice.load(chat_model)
    raw = result_of(cli("run", "-m", chat_model, "--json", "-n", 5, "--raw", "w1 w2"))
    assert raw["tokens"] == model.generate("w1 w2", max_tokens=5).tokens
    messages = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1 w2"}]
    system = result_of(cli("run", "-m", chat_model, "--json", "-n", 5, "--system", "w9", "-", input="w1 w2"))
    assert system["tokens"] == model.generate(messages, max_tokens=5).tokens
    refused(cli("run", "-m", chat_model, "--raw", "--system", "w9", "w1"), "--system", code=2)


def test_run_hands_its_options_on(cli, chat_model, result_of):
    options = dict(temperature=1.5, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.2, seed=7)
    options |= dict(presence_penalty=0.5, frequency_penalty=-0.3)
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    got = result_of(cli("run", "-m", chat_model, "--json", "-n", 20, "--raw", "w1", *flags))
    assert got["tokens"] == lattice.load(chat_model).generate("w1", max_tokens=20, **options).tokens
    word = got["text"].split()[4]
    stopped = result_of(cli("run", "-m", chat_model, "--json", "-n", 20, "--raw", "w1", *flags, "--stop", word))
    assert stopped["finish_reason"] == "stop" and word not in stopped["text"].split()


def test_run_hands_biases_on(cli, chat_model, result_of, refused):
    got = result_of(
        cli("run", "-m", chat_model, "--json", "-n", 4, "w1", "--logit-bias", "9=9", "--logit-bias", "8=100")
    )
    assert got["tokens"] == [8] * 4
    first = result_of(cli("run", "-m", chat_model, "--json", "-n", 1, "w1"))["tokens"][0]
    without = result_of(cli("run", "-m", chat_model, "--json", "-n", 9, "w1", "--logit-bias", f"{first}=-inf"))
    assert first not in without["tokens"]
    for text in ("9", "w1=2", "9=x", "=", "9=1=2"):
        refused(cli("run", "-m", chat_model, "w1", "--logit-bias", text), "ID=VALUE", code=2)
    refused(cli("run", "-m", chat_model, "w1", "--logit-bias", "9=1", "--logit-bias", "9=2"), "given twice", code=2)
    refused(cli("run", "-m", chat_model, "w1", "--logit-bias", "9=101"), "logit_bias of token 9 from -100 to 100")
    refused(cli("run", "-m", chat_model, "w1", "--logit-bias", "100000=1"), "got 100000")


def test_run_logprobs(cli, chat_model, result_of, refused):
    got = result_of(cli("run", "-m", chat_model, "--json", "-n", 5, "--raw", "w1", "--logprobs", 2))
    wanted = lattice.load(chat_model).generate("w1", max_tokens=5, logprobs=2)
    assert list(got)[3:5] == ["tokens", "logprobs"]
    assert [entry["token"] for entry in got["logprobs"]] == got["tokens"] == wanted.tokens
    assert "".join(entry["text"] for entry in got["logprobs"]).strip() == wanted.text
    for entry, other in zip(got["logprobs"], wanted.logprobs, strict=True):
        assert entry["logprob"] == round(other.logprob, 6) <= 0
        assert [(each["token"], each["text"]) for each in entry["top"]] == [(t.token, t.text) for t in other.top]
        assert list(entry["top"][0]) == ["token", "text", "logprob"] and len(entry["top"]) == 2
    refused(cli("run", "-m", chat_model, "--logprobs", 2, "w1"), "--json", code=2)
    refused(cli("run", "-m", chat_model, "--json", "--logprobs", 21, "w1"), "logprobs from 0 to 20")


def test_a_logprob_that_json_lacks_is_null(capsys):
    entry = TokenLogprob(3, "x", -math.inf, (TokenLogprob(4, "y", math.nan), TokenLogprob(5, "z", -0.5)))
    found = _generate._entry(entry)
    assert found["logprob"] is None and [each["logprob"] for each in found["top"]] == [None, -0.5]


def test_run_errors(cli, chat_model, base_model, encoder, refused):
    refused(cli("run", "-m", base_model, "w1"), "tokenizer.json")
    refused(cli("run", "-m", encoder, "w1"), "a model that generates text", "load_encoder")
    refused(cli("run", "-m", chat_model, "-n", 500, "w1"), "context", "hint:")
    refused(cli("run", "-m", chat_model, "-t", "-1", "w1"), "temperature")
    refused(cli("run", "-m", chat_model, "--dtype", "f8", "w1"), "dtype among")
