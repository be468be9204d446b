"""A stand-in for the Hugging Face hub: repositories in memory, served by two threads on this machine.

    GET  /api/models/<repo>[/revision/<revision>]    commit, files, sizes, digests
    GET  /api/models/<repo>/tree/<revision>          the same, as the library's own download asks for it
    GET  /<repo>/resolve/<revision>/<file>           small files; large ones redirect to the store, on another port

What goes wrong is asked for: `hub.fail`, `hub.cut`, `hub.lie` and their like change the answers to come.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin")  # kept in LFS, as on the hub: known by SHA-256
TOKEN = "hf_secret"


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The repositories, what was asked for, and what shall go wrong."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> revision -> file -> content
        self.renamed: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers (names in lower case)
        self.fail: dict[str, tuple[int, str]] = {}  # part of a path -> HTTP status, X-Error-Code
        self.cut: dict[str, list[int]] = {}  # file -> bytes after which a body breaks off, one a request
        self.short: set[str] = set()  # files whose body and length are both too small
        self.lie: dict[str, bytes] = {}  # file -> what is sent in place of it
        self.forge: dict[str, str] = {}  # file -> name in the listing
        self.no_ranges = False
        self.endpoint = self.store = ""

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Add a revision of a repository; return its commit."""
        self.repositories.setdefault(repo, {})[revision] = files
        return self.commit(files)

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        revisions = self.repositories[repo]
        return revisions.get(revision) or next((f for f in revisions.values() if self.commit(f) == revision), None)

    def fetched(self) -> list[str]:
        """Return the names of files whose content was asked for, in order."""
        return [
            unquote(path.split("/resolve/")[1].split("/", 1)[1]) for _, path, _ in self.requests if "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        for part, (status, code) in self.hub.fail.items():
            if part in path:
                return self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if path.startswith("/store/"):
            return self.content(unquote(path.removeprefix("/store/")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(?:revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not (match := api or file):
            return self.answer(404, b"{}")
        repo, revision = match[1], unquote(match[2] or "main")
        if repo in self.hub.renamed:
            return self.answer(307, b"", {"Location": self.path.replace(repo, self.hub.renamed[repo])})
        if repo not in self.hub.repositories:
            return self.answer(401, b"{}", {"X-Error-Message": "Repository not found"})
        files = self.hub.files(repo, revision)
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self.listing(repo, files) if api else self.resolve(repo, files, unquote(match[3]))

    def listing(self, repo: str, files: dict[str, bytes]) -> None:
        siblings, tree = [], []
        for name, data in files.items():
            entry: dict[str, Any] = {
                "rfilename": self.hub.forge.get(name, name), "size": len(data), "blobId": git_digest(data),
            }  # fmt: skip
            if name.endswith(LARGE):
                entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
            oid = {"oid": entry["lfs"]["sha256"]} if "lfs" in entry else {}
            lfs = {"lfs": entry["lfs"] | oid} if oid else {}
            tree.append({"type": "file", "path": name, "size": len(data), "oid": git_digest(data)} | lfs)
        info = {"_id": "0", "id": repo, "modelId": repo, "sha": self.hub.commit(files), "siblings": siblings}
        answer = tree if "/tree/" in self.path else info
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data, headers = files[name], {"X-Repo-Commit": self.hub.commit(files)}
        if not name.endswith(LARGE):
            return self.content(f"{repo}/{self.hub.commit(files)}/{name}", headers | {"ETag": f'"{git_digest(data)}"'})
        headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        location = f"{self.hub.store}/store/{repo}/{self.hub.commit(files)}/{name}"
        return self.answer(302, b"", headers | {"Location": location})

    def content(self, place: str, headers: dict[str, str] | None = None) -> None:
        organisation, model, commit, name = place.split("/", 3)
        data = (self.hub.files(f"{organisation}/{model}", commit) or {})[name]
        data = self.hub.lie.get(name, data)
        if name in self.hub.short:
            data = data[: len(data) // 2]
        begin, status, headers = 0, 200, dict(headers or {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not self.hub.no_ranges:
            begin, status = int(asked[1]), 206
            if begin >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        stops = self.hub.cut.get(name)
        self.answer(status, data[begin:], headers, stops.pop(0) if stops else None)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who asked is gone
                self.wfile.write(body[:stop])
                self.wfile.flush()
        if stop is not None:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub without repositories until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    # Two names of one machine: a store of another name, as the hub's is, must not be told the token.
    hub.endpoint, hub.store = (f"http://{name}:{server.server_address[1]}"
                               for name, server in zip(("127.0.0.1", "localhost"), servers, strict=True))  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
