"""The cache: what it holds, what is wrong with it, removing from it, and processes that die or meet."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lattice.errors import SourceError
from lattice.weights import cache, cached, sources, verify


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def fill(files: Path, scratch: Path) -> cache.Filled:
    (files / "config.json").write_bytes(b"{}")
    (files / "weights.gguf").write_bytes(b"1234")
    return cache.Filled(files, {name: cache.sha256_of(files / name) for name in ("config.json", "weights.gguf")}, "abc")


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").iterdir() if path.suffix != ".lock")


def test_an_entry(home: Path) -> None:
    entry = cache.store(home, "pypi:one", fill)
    assert cache.find(home, "pypi:one") == entry == cached()[0]
    assert (entry.nbytes, entry.revision, entry.path) == (6, "abc", entry.directory / "files")
    assert cache.size_of(entry.path) == 6
    assert cache.find(home, "pypi:two") is None


def test_a_comparison_names_every_difference(home: Path) -> None:
    entry = cache.store(home, "pypi:one", fill)
    assert cache.compare(entry) == []
    (entry.path / "weights.gguf").write_bytes(b"1235")
    (entry.path / "config.json").unlink()
    (entry.path / "model.safetensors.index.json").write_bytes(b"{}")
    found = cache.compare(entry)
    assert [difference.file for difference in found] == ["config.json", "model.safetensors.index.json", "weights.gguf"]
    assert [difference.got for difference in found[:2]] == ["none", "one that was not fetched"]
    assert found[2].wanted == f"SHA-256 {entry.files['weights.gguf'].sha256}"
    with pytest.raises(SourceError, match=r"config.json as it was fetched(?s:.*)hint: `lattice rm pypi:one`"):
        verify(entry.path)


def test_a_link_in_place_of_a_file_is_a_difference(home: Path, tmp_path: Path) -> None:
    entry = cache.store(home, "pypi:one", fill)
    weights = entry.path / "weights.gguf"
    shutil.move(weights, tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert [(found.file, found.got) for found in cache.compare(entry)] == [("weights.gguf", "something else")]


def test_removing(home: Path) -> None:
    entry = cache.store(home, "pypi:one", fill)
    other = cache.store(home, "pypi:two", fill)
    held = cache.size_of(entry.directory)
    assert sources.remove("pypi:One") == held
    assert sources.remove("pypi:one") is None
    assert cached() == [other]
    assert sources.remove(str(other.path)) and cached() == []
    assert names(home) == []


def test_a_damaged_entry_is_removed_by_its_path(home: Path) -> None:
    entry = cache.store(home, "pypi:one", fill)
    (entry.directory / "manifest.json").write_bytes(b"{")
    (error,) = sources.damaged()
    assert f"hint: `lattice rm {entry.directory}`" in str(error)
    assert sources.remove(str(entry.directory)) and sources.damaged() == [] and names(home) == []
    with pytest.raises(SourceError):
        sources.remove(str(home / "models"))


def test_only_what_is_in_the_cache_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SourceError):
        sources.remove(str(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir()


def test_an_interrupted_removal_leaves_no_half_entry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(home, "pypi:one", fill)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sources.remove("pypi:one")
    assert cached() == [] and cache.find(home, "pypi:one") is None
    assert len(names(home)) == 1  # aside, and swept by whoever comes next
    cache.store(home, "pypi:two", fill)
    assert names(home) == [cache.entry_key("pypi:two")]


def test_an_entry_that_is_being_fetched_is_not_removed(home: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(files: Path, scratch: Path) -> cache.Filled:
        begun.set()
        assert go_on.wait(30)
        return fill(files, scratch)

    told: list[str] = []
    first = threading.Thread(target=cache.store, args=(home, "pypi:one", slow))
    second = threading.Thread(
        target=cache.store, args=(home, "pypi:one", fill), kwargs={"progress": lambda what, *_: told.append(what)}
    )
    first.start()
    assert begun.wait(30)
    with pytest.raises(SourceError, match="nobody fetches just now"):
        sources.remove("pypi:one")
    second.start()
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    first.join()
    second.join()
    assert told == ["wait for another process that fetches pypi:one"]
    assert len(cached()) == 1


@pytest.mark.parametrize("resumable", [True, False])
def test_what_a_failed_fetch_leaves(home: Path, resumable: bool) -> None:
    def fail(files: Path, scratch: Path) -> cache.Filled:
        (files / "half").write_bytes(b"1")
        (scratch / "part").write_bytes(b"123")
        raise OSError(errno.ENOSPC, "No space left on device")

    def resume(files: Path, scratch: Path) -> cache.Filled:
        assert [path.name for path in scratch.iterdir()] == (["part"] if resumable else [])
        assert list(files.iterdir()) == []
        return fill(files, scratch)

    with pytest.raises(OSError):
        cache.store(home, "pypi:one", fail, resumable=resumable)
    assert [left.source for left in sources.unfinished()] == (["pypi:one"] if resumable else [])
    assert cached() == []
    cache.store(home, "pypi:one", resume, resumable=resumable)
    assert sources.unfinished() == [] and names(home) == [cache.entry_key("pypi:one")]


def test_an_unfinished_fetch_can_be_removed(home: Path) -> None:
    def stop(files: Path, scratch: Path) -> cache.Filled:
        (scratch / "part").write_bytes(b"123")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store(home, "pypi:one", stop, resumable=True)
    assert sources.remove("pypi:one") and names(home) == []


KILLED = """
import sys, pathlib
from lattice.weights import cache
home = pathlib.Path(sys.argv[1])
def fill(files, scratch):
    (files / "weights.gguf").write_bytes(b"1234")
    return cache.Filled(files, {"weights.gguf": cache.sha256_of(files / "weights.gguf")})
print("go", flush=True)
for turn in range(10**6):
    cache.store(home, "pypi:one", fill)
    cache.remove(home, cache.entry_key("pypi:one"), "one")
"""


def test_a_killed_process_never_leaves_half_an_entry(home: Path) -> None:
    for delay in (0.0, 0.011, 0.023, 0.037, 0.051):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(home)], stdout=subprocess.PIPE)
        assert process.stdout.read(2) == b"go"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found, errors = cache.scan(home)
        assert errors == [] and all(cache.compare(entry) == [] for entry in found)
    assert cache.store(home, "pypi:one", fill).files
    assert names(home) == [cache.entry_key("pypi:one")]
