"""device="auto": the card only where it was measured to be faster, once; the processor whatever goes wrong."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import copy_model

import lattice
from lattice.backends import auto, select, wgpu
from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.wgpu import WgpuBackend, device, worth
from lattice.errors import LatticeError, LatticeWarning


@pytest.fixture
def card(monkeypatch):
    """A machine with a card; `seconds` are what a step takes on either device, `asked` counts measurements."""
    info = {"device": "Card 1", "description": "driver 7", "backend_type": "Vulkan", "adapter_type": "DiscreteGPU"}
    made = SimpleNamespace(info=info, seconds={"gpu": 0.001, "cpu": 0.004}, asked=0, fails=None)

    def measure(backend):
        made.asked += backend.name == "gpu"
        if made.fails is not None:
            raise made.fails
        return made.seconds[backend.name]

    monkeypatch.setattr(auto, "signs", lambda: ["/dev/dri/renderD128"])
    monkeypatch.setattr(wgpu, "open_device", lambda: made)
    monkeypatch.setattr(wgpu, "WgpuBackend", lambda device=None: SimpleNamespace(name="gpu"))
    monkeypatch.setattr(worth, "step_seconds", measure)
    return made


def test_a_quicker_card_is_taken_and_measured_once(card, tmp_path):
    first = auto.choose(tmp_path / "home")
    assert first.gpu and "Card 1: 1.0 ms a step" in first.reason and "the processor 4.0 ms" in first.reason
    assert auto.choose(tmp_path / "home") == first and card.asked == 1
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["device.json"]


def test_a_card_that_is_hardly_quicker_is_not_taken(card, tmp_path):
    card.seconds["gpu"] = 0.0039
    assert not auto.choose(tmp_path).gpu
    card.seconds["gpu"] = 0.001
    assert not auto.choose(tmp_path).gpu and card.asked == 1  # remembered, too
    data = json.loads((tmp_path / "device.json").read_text())
    assert data["until"] > time.time() + 86400
    (tmp_path / "device.json").write_text(json.dumps(data | {"until": time.time() - 1}))
    assert auto.choose(tmp_path).gpu  # drivers get better


@pytest.mark.parametrize("change", ["device", "description", "backend_type", "signs", "version", "target"])
def test_whatever_the_result_follows_from_is_measured_anew(change, card, tmp_path, monkeypatch):
    assert auto.choose(tmp_path).gpu
    if change in card.info:
        card.info[change] = "another"
    else:
        name = {"signs": "signs", "version": "_version", "target": "best_target"}[change]
        monkeypatch.setattr(auto, name, lambda: ["another"])
    card.seconds["cpu"] = 0.0001
    assert not auto.choose(tmp_path).gpu and card.asked == 2


@pytest.mark.parametrize("error", [LatticeError("[gpu] expected a card, got none"), OSError("no"), ImportError("wgpu")])
def test_what_fails_means_the_processor_and_is_remembered(error, card, tmp_path):
    card.fails = error
    found = auto.choose(tmp_path)
    assert not found.gpu and found.reason == str(error)
    assert auto.choose(tmp_path).reason == str(error) and card.asked == 1


def test_a_driver_that_ends_the_process_is_not_asked_twice(card, tmp_path, monkeypatch):
    class EndOfProcess(Exception):
        pass

    def write_no_more(file, choice):
        written(file, choice)
        raise EndOfProcess

    written = auto._write
    monkeypatch.setattr(auto, "_write", write_no_more)
    auto.choose(tmp_path)
    monkeypatch.setattr(auto, "_write", written)
    found = auto.choose(tmp_path)
    assert not found.gpu and "did not end" in found.reason and card.asked == 0


def test_ctrl_c_is_not_held_against_the_card(card, tmp_path):
    card.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        auto.choose(tmp_path)
    card.fails = None
    assert auto.choose(tmp_path).gpu


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"gpu": true, "seconds": 1, "until": 0}', '{"more": 1}', "\0"])
def test_a_damaged_file_is_written_anew(text, card, tmp_path):
    (tmp_path / "device.json").write_text(text)
    assert auto.choose(tmp_path).gpu and auto.choose(tmp_path).gpu and card.asked == 1


def test_where_nothing_can_be_written_it_is_the_processor(card, tmp_path):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home", None):
        assert not auto.choose(home).gpu
    assert card.asked == 0


def test_a_software_adapter_is_never_taken(tmp_path, monkeypatch):
    listed = device.wgpu.gpu.enumerate_adapters_sync
    software = [one for one in listed() if one.info["adapter_type"] == "CPU"]
    assert software, "these tests need a software adapter"
    monkeypatch.setattr(auto, "signs", lambda: ["/dev/dri/renderD128"])
    monkeypatch.setattr(device.wgpu.gpu, "enumerate_adapters_sync", lambda: software)
    device.open_device.cache_clear()
    found = auto.choose(tmp_path)
    device.open_device.cache_clear()
    assert not found.gpu and "only software adapters" in found.reason


def test_signs_of_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("dev/dri/card0", "dev/nvidiactl", "usr/share/vulkan/icd.d/lvp_icd.x86_64.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert auto.signs(tmp_path) == []  # a screen and a driver made of software are no card
    (tmp_path / "dev/nvidia0").touch()
    first = auto.signs(tmp_path)
    assert len(first) == 2
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM 580\nGCC\n")
    assert auto.signs(tmp_path) == [*first, "NVRM 580"]
    (tmp_path / "etc/vulkan/icd.d").mkdir(parents=True)
    (tmp_path / "etc/vulkan/icd.d/nvidia_icd.json").touch()
    assert len(auto.signs(tmp_path)) == 4


def test_without_a_sign_no_card_is_asked_for(tmp_path, monkeypatch):
    """Neither the library is imported, which takes longer than loading a small model, nor a file written."""
    monkeypatch.setattr(auto, "signs", lambda: [])
    for name in ("wgpu", "lattice.backends.wgpu"):
        monkeypatch.setitem(sys.modules, name, None)  # an import is an error
    assert auto.choose(tmp_path) == auto.Choice(False, "there is no graphics card")
    assert list(tmp_path.iterdir()) == []


def test_auto_is_what_was_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(select, "choose", lambda home: auto.Choice(home == tmp_path, "a test"))
    monkeypatch.setattr(wgpu, "WgpuBackend", lambda: "the card")
    assert select.select("auto", tmp_path) == "the card"
    assert select.select("auto").name == "cpu"

    def gone():
        raise LatticeError("[gpu] expected a card, got none")

    monkeypatch.setattr(wgpu, "WgpuBackend", gone)
    assert select.select("auto", tmp_path).name == "cpu"
    with pytest.raises(LatticeError, match="expected a card"):
        select.select("gpu", tmp_path)


@pytest.mark.parametrize("cause", ["memory", "state"])
def test_a_model_that_the_card_cannot_hold_runs_on_the_processor(cause, monkeypatch, tmp_path):
    """With one warning where `auto` is the card; who asked for the card has the error."""
    path, card = copy_model(tmp_path), WgpuBackend(wgpu.open_device(software=True))
    monkeypatch.setattr(select, "choose", lambda home: auto.Choice(True, "a test"))
    monkeypatch.setattr(wgpu, "WgpuBackend", lambda: card)
    if cause == "state":
        monkeypatch.setattr(card.device, "largest", 1 << 12)
    else:
        monkeypatch.setattr(card.device, "handle", Full())
    with pytest.warns(LatticeWarning, match=r"^\[gpu\] .* the processor") as noted:
        lm = lattice.load(path)
    assert lm.generate([1, 2], max_tokens=2).tokens and lm.engine.target == CpuBackend().target
    assert len([one for one in noted if issubclass(one.category, LatticeWarning)]) == 1
    with pytest.raises(LatticeError, match=r"^\[gpu\]"):
        lattice.load(path, device="gpu")
    with pytest.raises(LatticeError, match="context"):
        lattice.load(path, context=-1)  # wrong everywhere: neither a warning nor a second try


class Full:
    """A card whose memory is taken."""

    def create_buffer(self, **options):
        raise device.wgpu.GPUOutOfMemoryError("taken")


def test_what_is_measured_is_the_same_work(monkeypatch):
    monkeypatch.setattr(worth, "LAYERS", 2)
    gpu = WgpuBackend(wgpu.open_device(software=True))
    x, found = np.ones((1, worth.HIDDEN), np.float32), []
    for backend in (gpu, CpuBackend()):
        program = worth.step_program()
        plan = backend.compile(program, backend.load(program, worth.step_weights()), Capacity())
        found.append(plan.run(x=x)["y"])
        assert worth.step_seconds(backend) > 0
    assert np.abs(found[0] - x).max() > 1e-3  # the layers do something
    assert np.abs(found[0] - found[1]).max() < 2e-2 * np.abs(found[1] - x).max()  # activations in 8 bits
