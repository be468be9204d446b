"""`lattice doctor`: what it finds on this machine, and how it reads others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import lattice
from lattice.backends import auto
from lattice.cli import _machine, doctor
from lattice.weights import cache


def test_doctor(cli, home, result_of):
    got = result_of(cli("doctor", "--json"))
    assert got["problems"] == [] and got["version"] == lattice.__version__
    cpu = got["cpu"]
    assert cpu["target"] in cpu["targets"] and cpu["bandwidth_gb_s"] > 0
    assert 1 <= cpu["cores"]["logical"] <= cpu["cores"]["machine"]
    assert 0 < got["memory"]["available"] <= got["memory"]["total"]
    assert got["home"] == {"path": str(home), "exists": True, "writable": True, "free": got["home"]["free"]}
    (model,) = got["models"]
    assert (model["bytes"], model["needs"], model["fits"]) == (6, None, None) and model["problem"]
    printed = cli("doctor").stdout
    assert got["cpu"]["target"] in printed and "not understood" in printed and "\x1b" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(home) not in line and "system" not in line)


def test_doctor_names_what_is_missing(cli, home, monkeypatch):
    monkeypatch.setitem(doctor.LIBRARIES, "no-such-library", "nothing")
    done = cli("doctor", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["problems"] == [
        "no-such-library is not installed (nothing): pip install no-such-library"
    ]
    assert "MISSING" in cli("doctor").stdout


def test_doctor_says_which_models_fit(cli, tmp_path, monkeypatch, chat_model, result_of):
    import shutil

    monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "home"))

    def fill(files: Path, scratch: Path) -> cache.Filled:
        shutil.copytree(chat_model, files, dirs_exist_ok=True)
        return cache.Filled(files, {name: cache.sha256_of(files / name) for name in os.listdir(files)})

    cache.store(tmp_path / "home", "pypi:tiny", fill)
    plan = result_of(cli("doctor", "--model", "pypi:tiny", "--json"))
    (model,) = result_of(cli("doctor", "--json"))["models"]
    assert model["needs"] == plan["context"]["needs"] and model["fits"] is True
    memory = {"total": 1 << 30, "available": model["needs"] - 1, "limit": 1 << 20}
    monkeypatch.setattr(_machine, "memory", lambda: memory)
    assert result_of(cli("doctor", "--json"))["models"][0]["fits"] is False
    printed = cli("doctor").stdout
    assert "DOES NOT FIT" in printed and "limited to 1.05 MB" in printed


def test_doctor_on_a_home_that_cannot_be_written(cli, tmp_path, monkeypatch):
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("LATTICE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    done = cli("doctor")
    assert done.exit_code == 1
    assert "CANNOT BE WRITTEN" in done.stdout and "set LATTICE_HOME" in done.stdout


def test_doctor_says_what_auto_takes_and_why(cli, home, monkeypatch, result_of):
    reason = "Card 1: 1.0 ms a step of 160 MB, the processor 4.0 ms, and more words than a line has"
    monkeypatch.setattr(auto, "choose", lambda home: auto.Choice(True, reason))
    assert result_of(cli("doctor", "--json"))["auto"] == {"device": "gpu", "reason": reason}
    printed = cli("doctor").stdout
    assert "auto       takes the gpu: Card 1: 1.0 ms" in printed
    monkeypatch.setattr(auto, "choose", lambda home: auto.Choice(False, "there is no graphics card"))
    assert "auto       takes the cpu: there is no graphics card\n" in cli("doctor").stdout


# ---- graphics adapters ---------------------------------------------------------------------------------------------
def test_without_wgpu(monkeypatch):
    monkeypatch.setattr(_machine.importlib.util, "find_spec", lambda name: None)
    assert _machine.adapters() == {"wgpu": None, "adapters": [], "error": None}
    assert doctor._adapters(_machine.adapters()) == ["wgpu is not installed: models run on the processor"]


FAKE = """
class Adapter:
    info = {"device": "Card 1", "vendor": "v", "adapter_type": "DiscreteGPU", "backend_type": "Vulkan"}
class gpu:
    @staticmethod
    def enumerate_adapters_sync():
        ANSWER
__version__ = "0.99"
"""


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("return [Adapter()]", "Card 1, DiscreteGPU through Vulkan"),
        ("return []", "no adapter found by wgpu 0.99"),
        ("raise RuntimeError('no driver')", "none: RuntimeError: no driver"),
        ("import os; os.abort()", "none: exit code -6"),
    ],
)
def test_adapters_are_asked_for_in_a_process_of_its_own(tmp_path, monkeypatch, answer, line):
    (tmp_path / "wgpu.py").write_text(FAKE.replace("ANSWER", answer))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONFAULTHANDLER", "")
    assert doctor._adapters(_machine.adapters()) == [line]


# ---- other machines ------------------------------------------------------------------------------------------------
def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  800 kB\n"}


def test_memory_without_limits(tmp_path):
    root = machine(tmp_path, MEMINFO)
    assert _machine.memory(root) == {"total": 1_024_000, "available": 819_200, "limit": None}


def test_limits_of_control_groups_version_2(tmp_path):
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/user/memory.max": "500000\n",
        "sys/fs/cgroup/user/memory.current": "450000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 1\ninactive_file 100000\n",
        "sys/fs/cgroup/user/cpu.max": "max 100000\n",
    }
    root = machine(tmp_path, MEMINFO | files)
    assert _machine.memory(root) == {"total": 1_024_000, "available": 150_000, "limit": 500_000}
    assert _machine.cores(root)["quota"] == 2.5


def test_limits_of_control_groups_version_1(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "600000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    root = machine(tmp_path, MEMINFO | files)
    assert _machine.memory(root) == {"total": 1_024_000, "available": 500_000, "limit": 600_000}
    assert _machine.cores(root)["quota"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is read on Linux only")
def test_two_threads_of_one_core_are_one_physical_core(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4})
    topology = {0: 0, 1: 1, 4: 0}
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/core_id": f"{core}\n" for cpu, core in topology.items()}
    found = _machine.cores(machine(tmp_path, files))
    assert (found["logical"], found["physical"]) == (3, 2)
