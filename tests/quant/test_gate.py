"""The gate, against its definition written out, and what it says of models that went wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from small_models import copy_model, draw_tokens, hybrid_model
from tiny_models import write_encoder

from lattice.embed import load_encoder
from lattice.errors import FormatError, LatticeError
from lattice.generate import load, perplexity
from lattice.quant import gate

TOKENS = draw_tokens(200)
TEXT = "the quick brown fox jumps over the lazy dog " * 6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load(hybrid_model(tmp_path_factory.mktemp("source"), text=True))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load(hybrid_model(tmp_path_factory.mktemp("other"), text=True, bf16=True))  # the same draw, rounded


def by_definition(model, source, tokens, context):
    """Return KLD, agreement and both losses of every scored token, in float64 all the way."""
    found = []
    for start in range(0, len(tokens) - context + 1, context):
        window = tokens[start : start + context]
        ours, theirs = (lm.logits(window).astype(np.float64) for lm in (model, source))
        for row in range(context // 2, context - 1):
            p, q = (z[row] - math.log(np.exp(z[row]).sum()) for z in (theirs, ours))
            target = window[row + 1]
            found.append(((np.exp(p) * (p - q)).sum(), p.argmax() == q.argmax(), -q[target], -p[target]))
    return np.array(found).T


def test_a_model_is_no_distance_from_itself(source):
    found = gate.measure(source, source, TOKENS, context=32, thresholds="q8")
    assert (found.kld, found.tail, found.maximum, found.agreement, found.broken) == (0, 0, 0, 1, 0)
    assert (found.verdict, found.reasons) == ("PASS", [])
    assert found.perplexity == found.source_perplexity
    plain = perplexity.measure(source.engine, TOKENS, context=32)
    assert (found.perplexity, found.perplexity_error) == pytest.approx((plain.perplexity, plain.error), rel=1e-6)
    assert (found.tokens, found.windows, found.context) == (plain.tokens, plain.windows, plain.context)


@pytest.mark.parametrize("context", [5, 16, 64, 200])
def test_it_is_what_the_definition_says(source, other, context):
    kld, agree, loss, source_loss = by_definition(other, source, TOKENS, context)
    found = gate.measure(other, source, TOKENS, context=context)
    assert found.tokens == len(kld) and found.windows == 200 // context
    assert found.kld == pytest.approx(kld.mean(), rel=1e-6) and found.kld > 1e-7
    assert found.tail == pytest.approx(np.quantile(kld, 0.999), rel=1e-6)
    assert found.maximum == pytest.approx(kld.max(), rel=1e-6)
    assert found.agreement == agree.mean()
    assert found.kld_error == pytest.approx(kld.std(ddof=1) / math.sqrt(len(kld)), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-6)
    assert found.source_perplexity == pytest.approx(math.exp(source_loss.mean()), rel=1e-6)
    assert found.source_perplexity_error == pytest.approx(
        math.exp(source_loss.mean()) * source_loss.std(ddof=1) / math.sqrt(len(kld)), rel=1e-6
    )


def test_a_text_is_tokenised_once_and_cut_where_asked(source, other):
    told = []
    found = gate.measure(other, source, TEXT, context=16, chunks=3, progress=lambda *now: told.append(now))
    same = gate.measure(other, source, source.tokenizer.encode(TEXT), context=16, chunks=3)
    assert found == same and found.windows == 3 and told == [(1, 3), (2, 3), (3, 3)]


def test_of_a_known_distance_the_known_number_comes_out():
    # Half the mass moved: p = (1/2, 1/2, 0...), q = (1/4, 3/4, 0...).
    p, q = np.full((3, 9), -1e9, np.float32), np.full((3, 9), -1e9, np.float32)
    p[:, :2], q[:, :2] = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    found = gate.compare(p, q, np.array([0, 1, 1]))
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert found.kld == pytest.approx([wanted] * 3, rel=1e-6)
    assert found.loss == pytest.approx([math.log(4), math.log(4 / 3), math.log(4 / 3)], rel=1e-6)
    assert found.source_loss == pytest.approx([math.log(2)] * 3, rel=1e-6)
    assert found.agree.tolist() == [False] * 3 and found.finite.all()


def test_one_logit_that_is_moved_costs_what_it_must():
    logits = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    moved = logits.copy()
    moved[0, 7] += 1.0
    p = np.exp(logits[0].astype(np.float64)) / np.exp(logits[0].astype(np.float64)).sum()
    wanted = math.log(1 + p[7] * (math.e - 1)) - p[7]  # log of the sum's growth, less what the token gained
    assert gate.compare(logits, moved, np.array([0])).kld[0] == pytest.approx(wanted, rel=1e-5)


def test_how_rows_are_blocked_changes_no_bit(monkeypatch):
    draw = np.random.default_rng(1)
    source, model = (4 * draw.standard_normal((40, 333)).astype(np.float32) for _ in range(2))
    targets = draw.integers(0, 333, 40)
    whole = gate.compare(source, model, targets)
    for size in (1, 333, 1000, 7 * 333):
        monkeypatch.setattr(gate, "AT_ONCE", size)
        for mine, other in zip(whole, gate.compare(source, model, targets), strict=True):
            assert np.array_equal(mine, other)


def test_how_many_rows_an_engine_gives_at_once_changes_nothing(source, other, monkeypatch):
    whole = gate.measure(other, source, TOKENS, context=100)
    monkeypatch.setattr(gate, "SCORED_BYTES", 1)
    assert gate.measure(other, source, TOKENS, context=100) == whole


# ---- verdicts ----------------------------------------------------------------------------------------------------
def gate_of(**values):
    numbers = dict.fromkeys(("perplexity", "perplexity_error", "source_perplexity", "source_perplexity_error"), 9.0)
    numbers |= dict(kld=0.0005, kld_error=0.0, tail=0.01, maximum=1.0, agreement=0.99, agreement_error=0.0)
    counts = dict(tokens=1000, broken=0, windows=4, context=512)
    return gate.Gate(**(numbers | counts | {"thresholds": gate.THRESHOLDS["q8"]} | values))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, "PASS"),
        ({"kld": 0.001, "tail": 0.05, "agreement": 0.97}, "PASS"),
        ({"kld": 0.00101}, "WARN"),
        ({"kld": 0.0051}, "FAIL"),
        ({"tail": 0.06}, "WARN"),
        ({"tail": 0.26}, "FAIL"),
        ({"agreement": 0.95}, "WARN"),
        ({"agreement": 0.84}, "FAIL"),
        ({"kld": 0.002, "agreement": 0.5}, "FAIL"),
        ({"broken": 1}, "FAIL"),
        ({"kld": math.nan}, "FAIL"),
        ({"agreement": math.nan}, "FAIL"),
        ({"perplexity": math.nan}, "PASS"),
    ],
)
def test_verdicts(values, verdict):
    found = gate_of(**values)
    assert found.verdict == verdict
    assert bool(found.reasons) == (verdict != "PASS")


def test_reasons_name_what_missed():
    assert gate_of(kld=0.002, broken=3).reasons == [
        "tokens whose logits are not finite is 3, more than 0",
        "mean KLD is 0.002, more than 0.001",
    ]


def test_logits_that_are_not_finite_fail(source, tmp_path):
    folder = hybrid_model(tmp_path, text=True)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-4:] = np.float32(np.nan).tobytes()
    (folder / "model.safetensors").write_bytes(weights)
    broken = load(folder)
    found = gate.measure(broken, source, TOKENS, context=64)
    assert found.verdict == "FAIL" and found.broken > 0 and "not finite" in found.reasons[0]
    with pytest.raises(LatticeError, match="source with finite logits"):  # an error, not a verdict
        gate.measure(source, broken, TOKENS, context=64)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_counted_and_left_out(value):
    draw = np.random.default_rng(2)
    source = draw.standard_normal((4, 10)).astype(np.float32)
    model = source.copy()
    model[2, 3] = value
    found = gate.compare(source, model, np.zeros(4, np.int64))
    result = gate._gate(found, 1, 8, gate.THRESHOLDS["q8"])
    assert (result.tokens, result.broken, result.kld, result.agreement) == (4, 1, 0, 1)
    assert result.verdict == "FAIL" and "not finite" in result.reasons[0]
    model[:] = value
    result = gate._gate(gate.compare(source, model, np.zeros(4, np.int64)), 1, 8, gate.THRESHOLDS["q8"])
    assert result.broken == 4 and math.isnan(result.kld) and result.verdict == "FAIL"
    assert gate.Gate.from_json(json.loads(json.dumps(result.as_json(), allow_nan=False))).verdict == "FAIL"


# ---- JSON --------------------------------------------------------------------------------------------------------
def test_json_and_back():
    for found in (gate_of(kld=0.002), gate.EncoderGate(0.99995, 0.98, 30, 0, gate.THRESHOLDS["q8"])):
        data = json.loads(json.dumps(found.as_json()))
        assert gate.report(data) == found
        assert data["verdict"] == found.verdict and data["reasons"] == found.reasons


@pytest.mark.parametrize(
    "change",
    [
        {"kld": "0"}, {"tokens": 1.5}, {"tokens": None}, {"kld": True}, {"thresholds": None}, {"thresholds": {}},
        {"thresholds": {"kld": "x"}}, {"kld": [1]},
    ],
)  # fmt: skip
def test_json_that_is_no_report(change):
    with pytest.raises(FormatError, match=r"\[gate\] expected a number as"):
        gate.report(gate_of().as_json() | change)


# ---- what is refused ---------------------------------------------------------------------------------------------
def test_models_that_do_not_belong_together(source, tmp_path):
    with pytest.raises(LatticeError, match=r"source's vocabulary of 70, got one of 60"):
        gate.measure(load(hybrid_model(tmp_path, vocab_size=60)), source, TOKENS, context=32)
    reading = hybrid_model(tmp_path, text=True)
    tokenizer = (reading / "tokenizer.json").read_text().replace('"a"', '"~"').replace('"b"', '"a"')
    (reading / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(LatticeError, match=r"source's tokenizer, got token"):
        gate.measure(load(reading), source, TEXT, context=32)
    with pytest.raises(LatticeError, match=r"source's tokenizer, got token 0"):  # its windows begin with a BOS
        gate.measure(load(copy_model(tmp_path, text=True, bos=True)), load(copy_model(tmp_path, text=True)), TEXT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(context=512), "at least 512 tokens, got 200"),
        (dict(context=2), "context from 4"),
        (dict(context=32, chunks=0), "chunks of at least 1"),
        (dict(context=32, thresholds="q9"), "thresholds of q8, q4, quarot4, got 'q9'"),
    ],
)
def test_what_is_refused(source, given, message):
    with pytest.raises(LatticeError, match=message):
        gate.measure(source, source, TOKENS, **given)


def test_a_window_must_fit_into_both(source, tmp_path):
    small = load(hybrid_model(tmp_path, text=True), context=40)
    for pair in ((small, source), (source, small)):
        with pytest.raises(LatticeError, match="context from 4 to 40"):
            gate.measure(*pair, TOKENS, context=64)
    assert gate.measure(small, source, TOKENS, context=40).kld == 0


# ---- encoders ----------------------------------------------------------------------------------------------------
def test_encoders(tmp_path):
    source = load_encoder(write_encoder(tmp_path / "encoder"), dtype="f32")
    texts = [f"w{n} w{n + 3} w{n + 9}" for n in range(20)]
    itself = gate.measure_encoder(source, source, texts, thresholds="q8")
    assert itself.cosine == pytest.approx(1, abs=1e-12) and (itself.texts, itself.verdict) == (20, "PASS")
    rounded = load_encoder(tmp_path / "encoder", dtype="bf16")
    found = gate.measure_encoder(rounded, source, texts, thresholds="q8")
    a, b = (each.encode(texts).astype(np.float64) for each in (rounded, source))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (found.cosine, found.least) == pytest.approx((cosines.mean(), cosines.min()), abs=1e-12)
    assert found.cosine < 1
    with pytest.raises(LatticeError, match="dimensions, got 8"):
        gate.measure_encoder(load_encoder(tmp_path / "encoder", dimensions=8), source, texts)
    with pytest.raises(LatticeError, match="at least one text"):
        gate.measure_encoder(source, source, [])


@pytest.mark.parametrize(("cosine", "broken", "verdict"), [
    (0.99995, 0, "PASS"), (0.9998, 0, "WARN"), (0.999, 0, "FAIL"), (1.0, 1, "FAIL"), (math.nan, 0, "FAIL"),
])  # fmt: skip
def test_verdicts_of_encoders(cosine, broken, verdict):
    assert gate.EncoderGate(cosine, 0.9, 100, broken, gate.THRESHOLDS["q8"]).verdict == verdict


# ---- texts -------------------------------------------------------------------------------------------------------
def test_bundled_texts_have_nothing_in_common():
    texts = [gate.bundled(name) for name in ("evaluation", "calibration")]
    assert all(28_000 < len(text.encode()) < 45_000 for text in texts)
    grams = []
    for text in texts:
        words = text.split()
        grams.append({" ".join(words[i : i + 6]) for i in range(len(words) - 5)})
    assert not grams[0] & grams[1]
    assert all(text.isprintable() for whole in texts for text in whole.split("\n"))
    assert len(gate.paragraphs(texts[0])) > 60
    with pytest.raises(LatticeError, match="evaluation or calibration"):
        gate.bundled("../gate.py")
