"""`lattice bench`: what it counts, and when it does not measure."""

from __future__ import annotations

import math

import pytest
from small_models import copy_model, hybrid_model

import lattice
from lattice.backends import cpu, wgpu
from lattice.cli import _machine
from lattice.cli.bench import bytes_of_token


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure the bandwidth of a small buffer, and do not sit and listen."""
    bandwidth = cpu.bandwidth
    monkeypatch.setattr(cpu, "bandwidth", lambda: bandwidth(1 << 20))
    monkeypatch.setattr("lattice.cli.bench.LISTEN", 0.0)


SMALL = ("bench", "--prompt", 20, "--gen", 10, "--runs", 2, "--force")


def test_json(cli, chat_model, result_of):
    got = result_of(cli(*SMALL, "-m", chat_model, "--depth", 30, "--json"))
    assert (got["prompt"], got["gen"], got["runs"], got["depth"]) == (20, 10, 2, 30)
    for name in ("prefill", "decode", "bandwidth_gb_s"):
        assert 0 < got[name]["min"] <= got[name]["median"] <= got[name]["max"]
    low, high = (
        got["bytes_per_token"] * got["decode"][d] / got["bandwidth_gb_s"][b] / 1e9
        for d, b in (("min", "max"), ("max", "min"))
    )
    assert 0.98 * low - 1e-3 <= got["roof_fraction"] <= 1.02 * high + 1e-3
    assert got["bytes_per_token"] == sum(got["bytes"].values())
    assert 0 <= got["unsteady_runs"] <= 2


def test_the_weights_that_a_token_reads(cli, chat_model, result_of):
    layer = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 40 + 2 * 32)  # f32: q and o, k and v, the gated MLP, two norms
    head = 4 * (70 * 32 + 32)  # of the embedding a row is read
    got = result_of(cli(*SMALL, "-m", chat_model, "--json"))["bytes"]
    assert 2 * layer + head + 4 * 32 <= got["weights"] <= 1.3 * (2 * layer + head)  # tiles round rows up
    assert got["state"] == 0
    assert got["kv"] == 2 * (20 + 5 + 1) * 2 * 16 * 4  # two layers, half way through, keys and values, f32


def test_recurrent_state_is_read_and_written(tmp_path):
    engine = lattice.load(hybrid_model(tmp_path), draft=None).engine
    state = 3 * 4 * (4 * 8 * 16 + 3 * (2 * 2 * 8 + 4 * 16))  # three layers: heads of 8 by 16, and three inputs before
    parts = [bytes_of_token(engine, position) for position in (0, 100)]
    assert [part["state"] for part in parts] == [2 * state] * 2
    assert [part["kv"] for part in parts] == [1 * 2 * 2 * 16 * 4, 101 * 2 * 2 * 16 * 4]
    assert parts[0]["weights"] == parts[1]["weights"]


def test_layers_with_a_window_read_no_more_than_it(tmp_path):
    engine = lattice.load(copy_model(tmp_path, "gemma3-sliding")).engine
    layers = engine.opened.model.model.layers
    windows = [layer.self_attn.window for layer in layers]
    assert any(windows)
    config = engine.opened.config
    one = 2 * config.num_key_value_heads * config.head_dim * 4
    assert bytes_of_token(engine, 500)["kv"] == sum(one * (min(500, window or 500) + 1) for window in windows)


def test_of_experts_those_count_that_are_chosen(tmp_path):
    config = dict(num_experts=8, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    found = []
    for chosen in (1, 2, 8):
        folder = hybrid_model(tmp_path, model_type="qwen3_5_moe_text", num_experts_per_tok=chosen, **config)
        found.append(bytes_of_token(lattice.load(folder, draft=None).engine, 0)["weights"])
    one = 4 * 4 * 3 * 16 * 32  # four layers, f32, gate, up and down
    assert (found[1] - found[0], found[2] - found[0]) == (one, 7 * one)


def test_no_prompt_is_known_and_nothing_is_kept(cli, chat_model, monkeypatch):
    from lattice.generate.engine import Engine

    ran: list[int] = []
    engines: list[Engine] = []
    advance = Engine.advance

    def counted(self, sequence, tokens, sampler):
        ran.append(len(tokens))
        engines.append(self)
        return advance(self, sequence, tokens, sampler)

    monkeypatch.setattr(Engine, "advance", counted)
    assert cli(*SMALL, "-m", chat_model).exit_code == 0
    assert ran == [20, *[1] * 10] * 3
    assert engines[0].pool.used == 0


def test_longer_than_the_default_context(cli, tmp_path, result_of, refused):
    folder = copy_model(tmp_path, max_position_embeddings=9000)
    got = result_of(
        cli("bench", "-m", folder, "--depth", 8300, "--prompt", 4, "--gen", 2, "--runs", 1, "--force", "--json")
    )
    assert got["depth"] == 8300
    refused(cli(*SMALL, "-m", folder, "--depth", 9000), "a context from 1 to the model's 9000")


def test_on_a_card_speeds_are_measured_alone(cli, chat_model, result_of, monkeypatch):
    gpu = wgpu.WgpuBackend(wgpu.open_device(software=True))
    monkeypatch.setattr(wgpu, "WgpuBackend", lambda: gpu)
    got = result_of(cli(*SMALL, "-m", chat_model, "--device", "gpu", "--json"))
    assert got["target"] == gpu.target and got["decode"]["median"] > 0
    assert got["bytes"] is got["roof_fraction"] is got["bandwidth_gb_s"] is None
    printed = cli(*SMALL, "-m", chat_model, "--device", "gpu").stdout
    assert "decode" in printed and "roof" not in printed and "GB/s" not in printed


def test_it_prints(cli, chat_model):
    printed = cli(*SMALL, "-m", chat_model).stdout
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["prefill", "decode", "bandwidth", "roof"]


# ---- others on the cores -----------------------------------------------------------------------------------------
@pytest.fixture
def used(monkeypatch):
    """Return a function that says what cores others use, look by look."""

    def use(*values):
        left = list(values)
        monkeypatch.setattr(_machine.Others, "cores", lambda self: left.pop(0))

    return use


def test_it_refuses_a_busy_machine(cli, chat_model, used, refused, result_of):
    small = ("bench", "-m", chat_model, "--prompt", 4, "--gen", 2, "--runs", 2)
    used(1.5)
    refused(cli(*small), "cores that nobody else uses, got 1.50 of them in use before the first run", "--force")
    used(0.02, 0.0, 0.7)
    refused(cli(*small), "got 0.70 of them in use during run 2")
    used(1.5, 0.0, 0.7)
    assert result_of(cli(*small, "--force", "--json"))["others_cores"] == 1.5
    used(0.0, 0.0, 0.7)
    assert "other processes used up to 0.70 cores" in cli(*small, "--force").stdout
    used(0.0, 0.05, 0.02)
    assert "processes" not in cli(*small).stdout


def test_where_it_cannot_be_known_it_says_so(cli, chat_model, used, result_of):
    small = ("bench", "-m", chat_model, "--prompt", 4, "--gen", 2, "--runs", 1)
    used(None, None)
    assert result_of(cli(*small, "--json"))["others_cores"] is None
    used(None, None)
    assert "is not known on this system" in cli(*small).stdout


def test_what_the_system_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_machine.sys, "platform", "linux")
    monkeypatch.setattr(_machine.os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    monkeypatch.setattr(_machine.os, "sysconf", lambda _: 100)
    clock, own = [0.0, 2.0], [5.0, 5.5]
    monkeypatch.setattr(_machine, "perf_counter", lambda: clock.pop(0))
    monkeypatch.setattr(_machine, "process_time", lambda: own.pop(0))
    (tmp_path / "proc").mkdir()

    def stat(first, other):
        lines = ["cpu  9 9 9 9 9 9 9 9 9 9", f"cpu0 {first} 0 10 500 7 0 0 99 0 0", f"cpu1 {other} 0 0 0 0 0 0 0 0 0"]
        (tmp_path / "proc" / "stat").write_text("\n".join([*lines, "cpu3 50 1 2 3 4 5 6 7 0 0", "intr 1"]))

    stat(100, 0)
    watch = _machine.Others(tmp_path)
    stat(250, 400)  # 1.5 s on core 0, of which 0.5 are our own; core 1 is not ours
    assert math.isclose(watch.cores(), (1.5 - 0.5 - 0.02) / 2)


def test_without_the_system_nothing_is_known(tmp_path):
    assert _machine.Others(tmp_path).cores() is None
