"""Models from a hub: a stand-in server on this machine, and the real library of the hub that talks to it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, Hub, serving
from huggingface_hub import constants

from lattice.errors import FormatError, LatticeError, LatticeWarning, SourceError
from lattice.weights import cache, cached, open_checkpoint, resolve, sources, verify

from .conftest import write_model

CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub, with caches of our own and no waiting between the library's attempts."""
    with serving() as made:
        monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield made


@pytest.fixture
def model(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """Serve a small model, among what no model needs, as org/tiny."""
    directory = write_model(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    files |= {"README.md": CARD, "tokenizer.json": b'{"version": "1.0"}', "1_Pooling/config.json": b"{}"}
    noise = ("pytorch_model.bin", "modeling.py", "onnx/model.onnx", "onnx/config.json", "big.safetensors.bak", "a.png")
    hub.add("org/tiny", files | dict.fromkeys(noise, b"noise"))
    return files


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def entry_directory() -> Path:
    (entry,) = cached()
    return entry.directory


# ---- what is fetched ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["org/tiny", "hf:org/tiny", "org/tiny@main"])
def test_a_model_is_fetched_with_the_files_that_it_needs_and_no_others(hub: Hub, model: dict, source: str) -> None:
    told: list[tuple] = []
    path = resolve(source, progress=lambda *progress: told.append(progress))
    assert tree(path) == model
    assert open_checkpoint(path).names == ["w"]
    size = len(model["model.safetensors"])
    assert ("fetch model.safetensors", size, size) in told
    (entry,) = cached()
    assert entry.revision == hub.commit(hub.files("org/tiny", "main"))
    assert entry.digest("tokenizer.json") == hashlib.sha256(model["tokenizer.json"]).hexdigest()
    assert verify(path) == entry


def test_a_second_start_asks_nobody(hub: Hub, model: dict) -> None:
    path = resolve("org/tiny")
    hub.requests.clear()
    hub.fail["/"] = (500, "")
    assert resolve("hf:org/tiny") == path
    assert resolve("org/tiny", offline=True) == path
    assert hub.requests == []


def test_a_revision(hub: Hub, model: dict) -> None:
    other = model | {"config.json": b'{"model_type": "other"}'}
    commit = hub.add("org/tiny", other, revision="v1/rc")
    by_name, by_commit = resolve("org/tiny@v1/rc"), resolve(f"org/tiny@{commit}")
    assert tree(by_name) == tree(by_commit) == other
    assert tree(resolve("org/tiny")) == model
    assert len(cached()) == 3


def test_one_gguf_file(hub: Hub, tiny_gguf: Path) -> None:
    data = tiny_gguf.read_bytes()
    hub.add("org/quants", {"q/tiny.Q4.gguf": data, "tiny.Q8.gguf": data + b"8", "config.json": b"{}"})
    path = resolve("org/quants:q/tiny.Q4.gguf")
    assert path.read_bytes() == data and path.name == "tiny.Q4.gguf"
    assert hub.fetched() == ["q/tiny.Q4.gguf"]
    with pytest.raises(SourceError, match=r"got 2 GGUF files\nhint: name one: org/quants:q/tiny.Q4.gguf"):
        resolve("org/quants")
    with pytest.raises(SourceError, match=r"got no none.gguf\nhint: its GGUF files: q/tiny.Q4.gguf, tiny.Q8.gguf"):
        resolve("org/quants:none.gguf")


def test_the_only_gguf_file_needs_no_name(hub: Hub, tiny_gguf: Path) -> None:
    files = {"tiny.gguf": tiny_gguf.read_bytes(), "mmproj.gguf": b"", "README.md": CARD, "params.json": b"{}"}
    hub.add("org/gguf", files)
    path = resolve("org/gguf")
    assert path.name == "tiny.gguf" and sorted(tree(path.parent)) == ["README.md", "tiny.gguf"]


def sharded(tmp_path: Path) -> dict[str, bytes]:
    weights = (write_model(tmp_path / "made") / "model.safetensors").read_bytes()
    shards = {
        f"model-0000{n}-of-00002.safetensors": weights.replace(b'"w"', b'"%s"' % b"ab"[n - 1 : n]) for n in (1, 2)
    }
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    return shards | {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}


def test_shards_are_those_of_the_index(hub: Hub, tmp_path: Path) -> None:
    files = sharded(tmp_path)
    hub.add("org/large", files | {"consolidated.safetensors": b"the same once more"})
    path = resolve("org/large")
    assert tree(path) == files
    assert sorted(open_checkpoint(path).names) == ["a", "b"]


@pytest.mark.parametrize("shard", ["../../evil", 7, "none.safetensors"])
def test_an_index_that_names_what_there_is_not(hub: Hub, tmp_path: Path, shard: object) -> None:
    files = sharded(tmp_path) | {"model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode()}
    hub.add("org/large", files)
    with pytest.raises(SourceError, match="shards that the repository has"):
        resolve("org/large")
    assert cached() == []


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "a repository without\nhint: .* can run code"),
        ({"README.md": b""}, "a repository without"),
        ({"config.json": b"{}", "a.safetensors": b"", "b.safetensors": b""}, "a repository without"),
    ],
)
def test_repositories_without_a_model_are_refused_before_any_download(hub: Hub, files: dict, fragment: str) -> None:
    hub.add("org/none", files)
    with pytest.raises(SourceError, match=fragment):
        resolve("org/none")
    assert hub.fetched() == []


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "1_A/../../evil.json"])
def test_no_model_needs_a_file_outside(hub: Hub, model: dict, name: str) -> None:
    hub.forge["tokenizer.json"] = name
    resolve("org/tiny")
    assert not any("evil" in file for file in hub.fetched())


@pytest.mark.parametrize("name", ["a\\b.json", "C:b.json", "a\nb.json", "x" * 400 + ".json"])
def test_names_that_no_file_has(hub: Hub, model: dict, name: str) -> None:
    hub.forge["tokenizer.json"] = name
    with pytest.raises(FormatError, match="entries inside their directory"):
        resolve("org/tiny")


@pytest.mark.parametrize("name", ["../../evil.gguf", "/evil.gguf", "a/../evil.gguf"])
def test_weights_outside(hub: Hub, name: str) -> None:
    hub.add("org/gguf", {"tiny.gguf": b"GGUF"})
    hub.forge["tiny.gguf"] = name
    with pytest.raises(FormatError, match="entries inside their directory"):
        resolve("org/gguf")
    assert hub.fetched() == []


@pytest.mark.parametrize("source", ["org/tiny:model.safetensors", "org/tiny:../x.gguf", "org/tiny:pytorch_model.bin"])
def test_only_gguf_files_can_be_named(hub: Hub, model: dict, source: str) -> None:
    with pytest.raises(SourceError, match="a .gguf file inside the repository"):
        resolve(source)
    assert hub.requests == []


def test_a_renamed_repository_and_a_store_elsewhere(hub: Hub, model: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.renamed["org/old"] = "org/tiny"
    assert tree(resolve("org/old")) == model
    sent = {path: headers.get("authorization") for _, path, headers in hub.requests}
    assert all(token == f"Bearer {TOKEN}" for path, token in sent.items() if path.startswith("/api"))
    assert [token for path, token in sent.items() if path.startswith("/store")] == [None]  # the token stays at home


# ---- what goes wrong ------------------------------------------------------------------------------------------------
def test_a_broken_connection_is_continued(hub: Hub, model: dict) -> None:
    hub.cut["model.safetensors"] = [10, 20]
    assert tree(resolve("org/tiny")) == model
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.startswith("/store")]
    assert ranges == [None, "bytes=10-", "bytes=30-"]


def test_the_next_start_continues_what_an_earlier_one_left(hub: Hub, model: dict) -> None:
    hub.cut["model.safetensors"] = [50] + [0] * 1000
    with pytest.raises(SourceError, match=r"a hub that answers(?s:.*)hint: what was fetched so far is kept"):
        resolve("org/tiny")
    assert cached() == []
    (left,) = sources.unfinished()
    assert left.source == "hf:org/tiny" and left.nbytes > 50
    hub.cut.clear()
    hub.requests.clear()
    assert tree(resolve("org/tiny")) == model
    assert hub.fetched() == ["model.safetensors"]  # the small files were whole
    assert [headers["range"] for _, path, headers in hub.requests if "/resolve/" in path] == ["bytes=50-"]
    assert sources.unfinished() == []


def test_a_server_without_ranges_begins_anew(hub: Hub, model: dict) -> None:
    hub.cut["model.safetensors"] = [50] + [0] * 1000
    with pytest.raises(SourceError):
        resolve("org/tiny")
    hub.cut.clear()
    hub.no_ranges = True
    assert tree(resolve("org/tiny")) == model


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_wrong_hash_is_refused_and_nothing_of_it_kept(hub: Hub, model: dict, tmp_path: Path, file: str) -> None:
    hub.lie[file] = model[file][:-1] + b"!"
    with pytest.raises(SourceError, match=f"{file}. expected (SHA-256|git SHA-1) [0-9a-f]+, got"):
        resolve("org/tiny")
    assert cached() == []
    assert not any(hub.lie[file] == data for data in tree(tmp_path / "home").values())
    hub.lie.clear()
    assert tree(resolve("org/tiny")) == model


def test_a_spoiled_part_is_fetched_once_more(hub: Hub, model: dict, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [50] + [0] * 1000
    with pytest.raises(SourceError):
        resolve("org/tiny")
    hub.cut.clear()
    (part,) = (tmp_path / "home").rglob("*.part")
    part.write_bytes(bytes(50))
    assert tree(resolve("org/tiny")) == model
    assert part.name.startswith(hashlib.sha256(model["model.safetensors"]).hexdigest())


def test_a_body_of_another_length(hub: Hub, model: dict) -> None:
    size = len(model["model.safetensors"])
    hub.short.add("model.safetensors")
    with pytest.raises(SourceError, match=f"model.safetensors. expected {size} bytes"):
        resolve("org/tiny")
    hub.short.clear()
    hub.lie["model.safetensors"] = model["model.safetensors"] + bytes(100)
    with pytest.raises(SourceError, match=f"model.safetensors. expected {size} bytes, got more"):
        resolve("org/tiny")
    assert cached() == []


@pytest.mark.parametrize(
    ("path", "status", "code", "fragments"),
    [
        ("/api/", 403, "GatedRepo", ("a gated one", "hint: accept its terms", "HF_TOKEN")),
        ("/api/", 401, "RepoNotFound", ("none called org/tiny, or a private one", "hint: check the name")),
        ("/api/", 404, "RepoNotFound", ("none called org/tiny",)),
        ("/api/", 403, "", ("HTTP 403", "hint: set HF_TOKEN")),
        ("/api/", 500, "", ("a hub that answers, got HTTP 500", "hint: what was fetched so far is kept")),
        ("/api/", 429, "", ("HTTP 429", "try again later")),
        ("/resolve/", 404, "EntryNotFound", ("one that the hub lists and does not give",)),
        ("/store/", 503, "", ("HTTP 503",)),
    ],
)
def test_answers_of_the_hub_that_are_errors(
    hub: Hub, model: dict, path: str, status: int, code: str, fragments: tuple[str, ...]
) -> None:
    hub.fail[path] = (status, code)
    with pytest.raises(SourceError) as caught:
        resolve("org/tiny")
    assert str(caught.value).startswith("[hf:org/tiny")
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_repositories_and_revisions_that_there_are_not(hub: Hub, model: dict) -> None:
    with pytest.raises(SourceError, match="none called org/none, or a private one"):
        resolve("org/none")
    with pytest.raises(SourceError, match=r"expected a revision of the repository, got no v9\nhint: a branch"):
        resolve("org/tiny@v9")


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"a hub that answers, got ConnectError|ConnectionError"):
        resolve("org/tiny")


def test_a_full_disk_while_writing(hub: Hub, model: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(SourceError, match=r"space for its files at .*home.*, got a full disk\nhint: free some"):
            resolve("org/tiny")
    assert tree(resolve("org/tiny")) == model


def test_a_disk_without_room_is_noticed_before_the_download(
    hub: Hub, model: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice.weights.hub.shutil.disk_usage", lambda path: os.terminal_size((1, 1)) and Usage())
    with pytest.raises(SourceError, match=r"expected 0.00 GB free at .*, got 0.01 GB\nhint: free some"):
        resolve("org/tiny")
    assert hub.fetched() == []


class Usage:
    free = 10_000_000


def test_a_cache_that_cannot_be_written(hub: Hub, model: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "file"))
    with pytest.raises(LatticeError, match=r"a cache that can be written at(?s:.*)set LATTICE_HOME"):
        resolve("org/tiny")


# ---- without a network ----------------------------------------------------------------------------------------------
@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened offline")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_offline_opens_no_socket(hub: Hub, model: dict, no_sockets: None) -> None:
    with pytest.raises(
        SourceError, match=r"a cached model, got none, and offline\nhint: run `lattice pull hf:org/tiny`"
    ):
        resolve("org/tiny", offline=True)
    with pytest.raises(SourceError):
        resolve("org/tiny:a.gguf", offline=True)


def test_the_hubs_own_switch_is_obeyed(hub: Hub, model: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        resolve("org/tiny")
    assert hub.requests == []


# ---- the hub's own cache --------------------------------------------------------------------------------------------
@pytest.fixture
def hub_cache(hub: Hub, model: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the hub's own cache with org/tiny, by its own library."""
    path = huggingface_hub.snapshot_download(
        "org/tiny", cache_dir=tmp_path / "hub", endpoint=hub.endpoint, ignore_patterns=["*.bin"]
    )
    hub.requests.clear()
    return Path(path)


def test_the_hubs_cache_is_used_offline_as_it_is(hub: Hub, model: dict, hub_cache: Path, no_sockets: None) -> None:
    assert resolve("org/tiny", offline=True) == hub_cache
    assert open_checkpoint(hub_cache).names == ["w"]
    assert cached() == []
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="none, and offline"):
        resolve("org/tiny", offline=True)


def test_what_the_hubs_cache_has_is_not_fetched_again(hub: Hub, model: dict, hub_cache: Path) -> None:
    (hub_cache / "tokenizer.json").resolve().unlink()
    path = resolve("org/tiny")
    assert tree(path) == model
    assert hub.fetched() == ["tokenizer.json"]
    assert (path / "model.safetensors").samefile(hub_cache / "model.safetensors")  # the same bytes on the disk


def test_damage_in_the_hubs_cache_is_not_taken_over(hub: Hub, model: dict, hub_cache: Path) -> None:
    blob = (hub_cache / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert tree(resolve("org/tiny")) == model
    assert hub.fetched() == ["model.safetensors"]


def test_a_hub_that_does_not_answer_leaves_its_cache(hub: Hub, model: dict, hub_cache: Path) -> None:
    hub.fail["/"] = (503, "")
    with pytest.warns(LatticeWarning, match=r"HTTP 503(?s:.*)using what the hub's own cache holds"):
        assert resolve("org/tiny") == hub_cache


def test_removing_ours_leaves_the_hubs(hub: Hub, model: dict, hub_cache: Path) -> None:
    resolve("org/tiny")
    held = cache.size_of(entry_directory())
    assert sources.remove("org/tiny") == held - sum(map(len, model.values()))  # shared bytes are not freed
    assert cached() == []
    assert tree(hub_cache)["model.safetensors"] == model["model.safetensors"]


# ---- processes ------------------------------------------------------------------------------------------------------
FETCH = "import lattice.weights as w; print(w.resolve('org/tiny', progress=lambda *told: print(*told, flush=True)))"


def test_two_processes_fetch_once(hub: Hub, model: dict) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert hub.fetched().count("model.safetensors") == 1


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_leaves_what_can_be_continued(
    hub: Hub, model: dict, way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = model["model.safetensors"]
    big = model | {"model.safetensors": weights + bytes(24 << 20)}
    hub.add("org/tiny", big)
    slow = (
        "import time, lattice.weights as w\n"
        "def slow(what, done, total):\n"
        "    if 'safetensors' in what and done > 12 << 20:\n        print('begun', flush=True); time.sleep(0.5)\n"
        "w.resolve('org/tiny', progress=slow)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(way)
    process.communicate(timeout=60)
    assert process.returncode != 0 and cached() == []
    (part,) = (tmp_path / "home").rglob("*.part")
    had = part.stat().st_size
    assert 0 < had < len(big["model.safetensors"])
    hub.requests.clear()
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10 << 20)
    path = resolve("org/tiny")
    assert tree(path) == big
    assert [headers.get("range") for _, place, headers in hub.requests if place.startswith("/store")] == [
        f"bytes={had}-"
    ]
    assert path.parent == entry_directory()
