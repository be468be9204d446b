"""Quantised checkpoints: the same bytes however often the work was killed, and models that open like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_models import MODELS
from small_models import copy_model, draw_tokens, hybrid_model
from tiny_models import write_encoder

import lattice
from lattice.dtypes import BY_NAME, F16, Q8_0, dense, encode
from lattice.errors import LatticeError
from lattice.quant import Report, convert, quantize
from lattice.quant.journal import NAME
from lattice.quant.recipe import plan
from lattice.weights import SafetensorsFile, open_checkpoint

KILLED = """
import os, pathlib, random, signal, sys, time
from lattice.quant import quantize
source, folder, kills, calibrate = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
draw = random.Random(0)

def begun(out):
    # a process that tells a byte for each tensor it begins; the parent computes nothing: it has no threads to lose
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        begins = lambda *_: os.write(tell, b".")
        quantize(source, out, to="q4", calibrate=calibrate or None, gate=False, progress=begins)
        os._exit(0)
    os.close(tell)
    return pid, open(told, "rb", buffering=0)

begin = time.monotonic()
pid, told = begun(folder / "whole")
tensors = len(told.read())  # until it ends
assert os.waitpid(pid, 0)[1] == 0
spent = time.monotonic() - begin
wanted = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
made = killed = kept = 0
while killed < kills or (folder / f"{made}.part").exists():
    out = folder / str(made)
    pid, told = begun(out)
    # After so many tensors, and not by the clock: a machine may be busy.
    if killed < kills and all(told.read(1) for _ in range(draw.randrange(tensors // 2))):
        time.sleep(draw.uniform(0, 1) * spent / tensors)
        os.kill(pid, signal.SIGKILL)
    told.read()  # until it ends
    told.close()
    died = os.waitpid(pid, 0)[1] == signal.SIGKILL
    killed += died
    journal = folder / f"{made}.part" / "journal.jsonl"
    kept += died and journal.exists() and journal.read_bytes().count(b"\\n") > 1
    if not died:
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        assert found == wanted, [name for name in wanted if found.get(name) != wanted[name]]
        assert not out.with_name(f"{made}.part").exists()
        made += 1
print(made, killed, kept)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")
@pytest.mark.parametrize(("kills", "text"), [(20, ""), (6, "abcdef" * 40)])
def test_a_job_that_is_killed_goes_on_and_gives_the_same_bytes(tmp_path: Path, kills: int, text: str) -> None:
    source = hybrid_model(tmp_path, text=True, hidden_size=64, intermediate_size=96)
    calibration = tmp_path / "text.txt"
    calibration.write_text(text)
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", KILLED, source, work, str(kills), calibration if text else ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made, killed, kept = map(int, done.stdout.split())
    assert made >= 1
    assert killed == kills
    assert kept >= kills // 3  # most of them in the middle of tensors


def test_q8_is_what_encode_gives_and_loads_as_if_rounded_at_load(tmp_path: Path) -> None:
    source, out = hybrid_model(tmp_path, bf16=True), tmp_path / "q8"
    report = quantize(source, out, to="q8", gate=False)
    before, after = open_checkpoint(source), open_checkpoint(out)
    assert sorted(before.names) == sorted(after.names)
    rounded = 0
    for name in before.names:
        was, is_ = before.tensor(name), after.tensor(name)
        fits = was.ndim > 1 and was.shape[-1] % 32 == 0
        dtype = F16 if name.endswith("v_proj.weight") else Q8_0
        assert is_.dtype == (dtype if fits else was.dtype)
        wanted = encode(dense(was), dtype) if fits else was
        assert is_.data.tobytes() == wanted.data.tobytes()
        rounded += fits
    assert rounded > 20
    assert report.tensors["q8_0"][0] + report.tensors["f16"][0] == rounded
    assert report.bytes == (out / NAME).stat().st_size
    assert report.bits == report.bytes * 8 / sum(before.tensor(name).size for name in before.names)
    tokens = draw_tokens(40)
    with lattice.load(out) as ours, lattice.load(source, dtype="q8") as theirs:
        assert (ours.logits(tokens) == theirs.logits(tokens)).all()
        assert ours.generate(tokens, max_tokens=8).tokens == theirs.generate(tokens, max_tokens=8).tokens


@pytest.mark.parametrize("name", ["qwen35-mtp", "qwen35-moe", "qwen35-multimodal", "gemma3-sliding", "llama-sharded"])
def test_every_family_keeps_what_it_says(tmp_path: Path, name: str) -> None:
    source, out = MODELS / name, tmp_path / "out"
    with pytest.warns(match="vision part") if "multimodal" in name else _nothing():
        quantize(source, out, to="q8", tensors={"*.embed_tokens": "f32"}, gate=False)
        tokens = draw_tokens(30, vocab=37)
        with lattice.load(source, dtype="f32") as original:
            wanted = original.logits(tokens)
    with lattice.load(out, dtype="f32") as model:
        assert model.config == original.config
        error = np.abs(model.logits(tokens) - wanted).max() / max(1, np.abs(wanted).max())
    assert error < 0.1


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("name", ["gguf-llama-f16", "gguf-gemma3-f16", "gguf-qwen35-3x", "gguf-qwen35moe"])
def test_a_gguf_becomes_a_checkpoint_of_the_same_values(tmp_path: Path, name: str) -> None:
    source, out = MODELS / name / "model.gguf", tmp_path / "out"
    quantize(source, out, to="q8", tensors={"*": "keep"}, gate=False)
    tokens = draw_tokens(30, vocab=37)
    with lattice.load(source, dtype="f32") as original, lattice.load(out, dtype="f32") as model:
        np.testing.assert_allclose(model.logits(tokens), original.logits(tokens), rtol=1e-5, atol=1e-5)
        assert model.tokenizer.encode("the cat and") == original.tokenizer.encode("the cat and")


@pytest.mark.filterwarnings("ignore:.*they were cut")  # its longest text is 20 tokens
def test_an_encoder_keeps_its_pooling_and_tokenizer(tmp_path: Path) -> None:
    source, out = write_encoder(tmp_path / "source"), tmp_path / "out"
    report = quantize(source, out, to="q8")
    assert report.gate.kind == "encoder"
    assert report.gate.verdict in ("PASS", "WARN", "FAIL")
    original, encoder = lattice.load_encoder(source), lattice.load_encoder(out)
    texts = ["w1 w2 w3", "w4 w5"]
    assert (original.encode(texts) * encoder.encode(texts)).sum(1).min() > 0.99
    assert encoder.max_tokens == original.max_tokens
    both = [lattice.load_encoder(each, dtype="q8").encode(texts) for each in (source, out)]  # auto narrows what is f32
    np.testing.assert_array_equal(*both)


def test_the_report_is_in_the_checkpoint(tmp_path: Path) -> None:
    source, out = hybrid_model(tmp_path, text=True), tmp_path / "out"
    report = quantize(source, out, to="q4", tensors={"lm_head": "q8_0"}, chunks=1)
    said = json.loads((out / "quantization.json").read_text())
    assert said == json.loads(json.dumps(report.as_json()))
    assert said["recipe"] == "q4"
    assert said["gate"]["verdict"] == report.gate.verdict
    assert Report.of(out) == report
    assert any("instead of q4_k" in note for note in said["notes"])
    assert SafetensorsFile(out / NAME).tensor("lm_head.weight").dtype == Q8_0


def test_calibration_changes_the_rounding(tmp_path: Path) -> None:
    source, text = hybrid_model(tmp_path, text=True), tmp_path / "text.txt"
    text.write_text("hello there " * 40)
    plain = quantize(source, tmp_path / "plain", to="q4", gate=False)
    better = quantize(source, tmp_path / "better", to="q4", calibrate=text, gate=False)
    assert better.bytes == plain.bytes
    assert better.calibration["tokens"] > 100
    name = "model.layers.0.mlp.up_proj.weight"
    first, second = (SafetensorsFile(tmp_path / each / NAME).tensor(name) for each in ("plain", "better"))
    assert first.dtype == second.dtype
    assert first.data.tobytes() != second.data.tobytes()


def test_a_turned_model_has_a_head_of_its_own_and_the_same_function(tmp_path: Path) -> None:
    source, out = hybrid_model(tmp_path, tie_word_embeddings=True), tmp_path / "out"
    quantize(source, out, to="quarot4", tensors={"*": "f32"}, gate=False)
    tokens = draw_tokens(30)
    with lattice.load(source, dtype="f32") as original, lattice.load(out) as model:
        assert not model.config.tie_word_embeddings
        wanted = original.logits(tokens)
        assert np.abs(model.logits(tokens) - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
    table = SafetensorsFile(out / NAME).tensor("model.embed_tokens.weight")
    assert not np.allclose(dense(table), dense(SafetensorsFile(source / NAME).tensor("model.embed_tokens.weight")))


def test_what_is_refused(tmp_path: Path) -> None:
    source = copy_model(tmp_path, "llama-bf16")
    with pytest.raises(LatticeError, match="a new or empty directory"):
        quantize(source, source, to="q8")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LatticeError, match="a new or empty directory"):
        quantize(source, tmp_path / "file", to="q8")
    with pytest.raises(LatticeError, match="one of q8, q4, quarot4, got 'q5'"):
        quantize(source, tmp_path / "out", to="q5")
    with pytest.raises(LatticeError, match="a dtype among"):
        quantize(source, tmp_path / "out", tensors={"lm_head": "iq2_s"})
    with pytest.raises(LatticeError, match="a pattern that fits a matrix"):
        quantize(source, tmp_path / "out", tensors={"head": "q8_0"})
    with pytest.raises(LatticeError, match="a readable calibration text"):
        quantize(source, tmp_path / "out", calibrate=tmp_path / "none.txt")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()
    quantize(source, tmp_path / "once", to="q8", gate=False)
    with pytest.raises(LatticeError, match="requantize=True"):
        quantize(tmp_path / "once", tmp_path / "twice", to="q4", gate=False)
    quantize(tmp_path / "once", tmp_path / "twice", to="q4", gate=False, requantize=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_part_of_another_job_is_refused_and_damage_is_written_again(tmp_path: Path, monkeypatch) -> None:
    source, out = hybrid_model(tmp_path), tmp_path / "out"
    whole = quantize(source, tmp_path / "whole", to="q8", gate=False)
    monkeypatch.setattr(convert, "write_files", _stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, to="q8", gate=False)
    monkeypatch.undo()
    with pytest.raises(LatticeError, match="got one with another header, recipe"):
        quantize(source, out, to="q4", gate=False)
    part = tmp_path / "out.part" / "model" / NAME
    raw = bytearray(part.read_bytes())
    raw[-100] ^= 1
    part.write_bytes(raw)
    with open(tmp_path / "out.part" / "journal.jsonl", "ab") as journal:
        journal.write(b'{"tensor": "cut')
    written = []
    quantize(source, out, to="q8", gate=False, progress=lambda name, done, total: written.append(name))
    assert len(written) == 1
    assert (out / NAME).read_bytes() == (whole.path / NAME).read_bytes()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_job_that_was_killed_behind_its_rename_is_done(tmp_path: Path) -> None:
    source, out = hybrid_model(tmp_path), tmp_path / "out"
    report = quantize(source, out, to="q8", gate=False)
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "lock").touch()
    assert quantize(source, out, to="q8", gate=False) == report
    assert not (tmp_path / "out.part").exists()
    with pytest.raises(LatticeError, match="in use"):
        quantize(source, out, to="q8", gate=False)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(LatticeError, match="bytes free beside"):
        quantize(hybrid_model(tmp_path), tmp_path / "out", to="q8", gate=False)
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_only_looked_up_gets_fewer_bits() -> None:
    shapes = {"model.embed_tokens.weight": (8, 256), "lm_head.weight": (8, 256)}
    assert plan(shapes, "q4").dtypes == {"model.embed_tokens.weight": "q5_k", "lm_head.weight": "q6_k"}
    assert plan({"model.embed_tokens.weight": (8, 256)}, "q4").dtypes == {"model.embed_tokens.weight": "q6_k"}
    asked = plan(shapes, "q4", {"model.embed_tokens": "q8_0"}).dtypes
    assert asked["model.embed_tokens.weight"] == "q8_0"


def test_recipes_fit_what_they_name() -> None:
    shapes = {"a.v_proj.weight": (4, 256), "a.q_proj.weight": (4, 96), "b.weight": (4, 20), "norm.weight": (256,)}
    found = plan(shapes, "q4")
    assert found.dtypes == {"a.v_proj.weight": "q6_k", "a.q_proj.weight": "q4_1"}
    assert found.notes == (
        "1 matrix is q4_1 instead of q4_k: a.q_proj.weight",
        "1 matrix is kept, not q4_k: b.weight",
    )
    assert all(dtype in BY_NAME for dtype in found.dtypes.values())
