"""A Hugging Face Hub on loopback: serves unmodified `datasets`, `huggingface_hub` and `transformers` from a folder.

    python -m tests.integration.hub_server --root DIR --port 0      # prints its port; HF_ENDPOINT=http://127.0.0.1:PORT

    DIR/datasets/org/name/main/...      a revision: every folder of a repository is a commit, and a branch of that name
    DIR/datasets/org/name/refs.json     {"main": "second", "v1": "main"}: branches and tags that point at other folders
    DIR/datasets/org/name/.token        the repository is private; the file holds the token that opens it
    DIR/datasets/org/name/.gated        it is gated: all see what there is, and nobody is let in to read it
    DIR/models/org/name/...             the same for models, which can be searched by their names
    DIR/datasets/name -> org/name       a symbolic link: an old short name of a repository
    DIR/files/...                       plain files under /files/, as any web server has them
    DIR/requests.jsonl                  written: every answered request (method, path, range, status, bytes; headers but for the
                                        token; body)

Files of at least `LFS_BYTES` are answered with a redirect, as files in LFS are. `POST /faults` takes a JSON list of
{"match": REGEX, "times": N, "answer": 503 | 429 | "reset" | "short", "retry_after": SECONDS}: the next N requests whose
"METHOD PATH RANGE" matches are answered so.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.forks import Forks

LFS_BYTES = 64 * 1024
BLOCK = 64 * 1024

REPOSITORY = r"(?P<id>[^/]+(?:/[^/]+)??)"
API = re.compile(
    rf"/api/(?P<kind>datasets|models)/{REPOSITORY}(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
RESOLVE = re.compile(rf"/(?:(?P<kind>datasets)/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.*)")
LFS = re.compile(r"/lfs/(?P<kind>datasets|models)/(?P<path>.*)")
PLAIN = re.compile(r"/files/(?P<path>.*)")


class RefusedError(Exception):
    """The request is answered with this status and X-Error-Code."""

    def __init__(self, status: int, code: str):
        super().__init__(code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Repository:
    """One repository: a folder whose subfolders are its commits."""

    folder: Path
    kind: str
    id: str

    def sha(self, folder: str) -> str:
        return hashlib.sha1(f"{self.kind}/{self.id}/{folder}".encode()).hexdigest()

    def commit(self, revision: str) -> tuple[str, Path]:
        """The sha and the folder of a branch, tag or sha."""
        folders = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        moved = self.folder / "refs.json"
        names = {name: name for name in folders} | (json.loads(moved.read_text()) if moved.exists() else {})
        folder = (names | {self.sha(name): name for name in folders}).get(revision)
        if folder is None:
            raise RefusedError(404, "RevisionNotFound")
        return self.sha(folder), self.folder / folder


@lru_cache(maxsize=100_000)
def digest(path: Path, algorithm: str, mtime_ns: int) -> str:
    """Git oid ("sha1") or LFS oid ("sha256") of a file; the time keys the cache."""
    content = path.read_bytes()
    return hashlib.new(algorithm, (b"blob %d\0" % len(content) if algorithm == "sha1" else b"") + content).hexdigest()


def describe(path: Path, root: Path) -> dict[str, Any]:
    """A file or folder as the tree listing shows it."""
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    status = path.stat()
    entry = {"type": "file", "oid": digest(path, "sha1", status.st_mtime_ns), "size": status.st_size, "path": name}
    if status.st_size >= LFS_BYTES:
        entry["lfs"] = {"oid": digest(path, "sha256", status.st_mtime_ns), "size": status.st_size, "pointerSize": 134}
    return entry


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """The request log replaces the one on stderr."""

    def record(self, status: int | str, sent: int) -> None:
        if self.path == "/faults":
            return
        line = {"method": self.command, "path": self.path, "range": self.headers["Range"], "status": status, "bytes": sent}
        line["headers"] = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        line["body"] = self.body.decode(errors="replace")
        with self.server.lock, self.server.log.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.record(status, 0 if self.command == "HEAD" else len(body))
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), headers)

    def handle_request(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        self.body = self.rfile.read(length)
        self.cut_short = False
        path = urllib.parse.urlsplit(self.path).path
        if self.command == "POST" and path == "/faults":
            with self.server.lock:
                self.server.faults.extend(json.loads(self.body))
            return self.answer(204)
        if self.command == "DELETE" and path == "/faults":
            with self.server.lock:
                self.server.faults.clear()
            return self.answer(204)
        if self.fails():
            return None
        try:
            if path == "/api/models":
                return self.answer_search()
            if found := API.fullmatch(path):
                return self.answer_api(**{name: urllib.parse.unquote(value or "") for name, value in found.groupdict().items()})
            if found := RESOLVE.fullmatch(path):
                return self.answer_resolve(
                    **{name: urllib.parse.unquote(value or "") for name, value in found.groupdict().items()}
                )
            if found := LFS.fullmatch(path):
                return self.answer_file(self.server.root / found["kind"] / urllib.parse.unquote(found["path"]), {})
            if found := PLAIN.fullmatch(path):
                return self.answer_file(self.server.root / "files" / urllib.parse.unquote(found["path"]), {})
            raise RefusedError(404, "NotFound")
        except RefusedError as refused:
            return self.answer(refused.status, b'{"error": "%s"}' % refused.code.encode(), {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = do_DELETE = handle_request  # noqa: N815 the names http.server calls

    def fails(self) -> bool:
        """Whether the next injected fault meets this request (and has been answered)."""
        request = f"{self.command} {self.path} {self.headers['Range'] or ''}"
        with self.server.lock:
            fault = next((f for f in self.server.faults if f["times"] > 0 and re.search(f["match"], request)), None)
            if fault is None:
                return False
            fault["times"] -= 1
        if fault["answer"] == "short":
            self.cut_short = True
            return False
        if fault["answer"] == "reset":
            self.record("reset", 0)
            self.drop()
            return True
        retry_after = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
        self.answer(fault["answer"], b'{"error": "injected"}', retry_after)
        return True

    def drop(self) -> None:
        """Ends the connection with a TCP reset."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def repository(self, kind: str, repository_id: str) -> Repository:
        """The repository, if there is one and the request may see it."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        folder = (self.server.root / kind / repository_id).resolve()
        if not (folder / "main").is_dir():
            raise RefusedError(404 if token else 401, "RepoNotFound")
        secret = folder / ".token"
        if secret.exists() and secret.read_text().strip() != token:
            raise RefusedError(401, "RepoNotFound")
        return Repository(folder, kind, folder.relative_to(self.server.root / kind).as_posix())

    def answer_api(self, kind: str, id: str, verb: str, revision: str, path: str) -> None:
        repository = self.repository(kind, id)
        sha, root = repository.commit(revision or "main")
        if verb == "tree":
            return self.answer_tree(root, path)
        if verb == "paths-info":
            wanted = urllib.parse.parse_qs(self.body.decode())["paths"]
            return self.answer_json([describe(root / name, root) for name in wanted if (root / name).exists()])
        files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        return self.answer_json(
            {
                "id": repository.id,
                "sha": sha,
                "private": (repository.folder / ".token").exists(),
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    def answer_search(self) -> None:
        wanted = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["search"][0]
        names = sorted(
            path.parent.relative_to(self.server.root / "models") for path in self.server.root.glob("models/*/*/main")
        )
        self.answer_json([{"id": name.as_posix(), "modelId": name.as_posix()} for name in names if wanted in name.as_posix()])

    def answer_tree(self, root: Path, path: str) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        folder = root / path
        if not folder.is_dir():
            raise RefusedError(404, "EntryNotFound")
        recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = sorted(folder.rglob("*") if recursive else folder.iterdir())
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.server.page_size
        headers = {}
        if end < len(entries):
            following = urllib.parse.urlencode({**{name: values[0] for name, values in query.items()}, "cursor": end})
            headers["Link"] = f'<http://{self.headers["Host"]}{urllib.parse.urlsplit(self.path).path}?{following}>; rel="next"'
        self.answer_json([describe(entry, root) for entry in entries[start:end]], headers)

    def answer_resolve(self, kind: str, id: str, revision: str, path: str) -> None:
        repository = self.repository(kind or "models", id)
        if (repository.folder / ".gated").exists():
            raise RefusedError(403 if self.headers["Authorization"] else 401, "GatedRepo")
        sha, root = repository.commit(revision)
        file = root / path
        if not file.is_file():
            raise RefusedError(404, "EntryNotFound")
        entry = describe(file, root)
        if "lfs" not in entry:
            return self.answer_file(file, {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": sha})
        stored = urllib.parse.quote(file.relative_to(self.server.root).as_posix())
        headers = {
            "Location": f"http://{self.headers['Host']}/lfs/{stored}",
            "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
            "X-Linked-Size": str(entry["size"]),
            "X-Repo-Commit": sha,
        }
        return self.answer(302, b"", headers)

    def answer_file(self, file: Path, headers: dict[str, str]) -> None:
        """The file, or the part of it that `Range: bytes=a-b`, `a-` or `-n` asks for."""
        if not file.is_file():
            raise RefusedError(404, "EntryNotFound")
        status = file.stat()
        size, start, status_code = status.st_size, 0, 200
        end = size
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or ""):
            first, last = wanted.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            status_code = 206
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        etag = {"ETag": f'"{digest(file, "sha256", status.st_mtime_ns)}"'}
        self.send_response(status_code)
        standard = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        for name, value in (standard | etag | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return self.record(status_code, 0)
        with file.open("rb") as content:
            content.seek(start)
            return self.send_body(content.read(end - start), status_code)

    def send_body(self, body: bytes, status: int) -> None:
        stop = len(body) // 2 if self.cut_short else len(body)
        last = max(0, stop - BLOCK)
        sent = 0
        try:
            while sent < last:
                sent += self.wfile.write(body[sent : min(sent + BLOCK, last)])
        except ConnectionError:  # the client had enough
            self.close_connection = True
            return self.record(status, sent)
        # Before the last block, so that whoever has read the whole body finds its line in the log.
        self.record(status, stop)
        self.wfile.write(body[sent:stop])
        if self.cut_short:
            self.drop()
        return None


class Server(http.server.ThreadingHTTPServer):
    """The listening socket and what its connections share."""

    daemon_threads = True

    def __init__(self, root: Path, port: int, page_size: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.root = root.resolve()
        self.page_size = page_size
        self.log = self.root / "requests.jsonl"
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is its own business; anything else is a mistake here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class Hub:
    """A running stand-in, seen from a test."""

    root: Path
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[dict[str, Any]]:
        """What was asked so far."""
        log = self.root / "requests.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def fail(self, match: str, answer: int | str, *, times: int = 1, **more: Any) -> None:
        """The next `times` requests whose "METHOD PATH RANGE" matches are answered so."""
        fault = [{"match": match, "answer": answer, "times": times, **more}]
        urllib.request.urlopen(f"{self.endpoint}/faults", json.dumps(fault).encode()).close()

    def forget(self) -> None:
        """Drop all repositories, faults and the log."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/faults", method="DELETE")).close()
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a process that knows this Hub and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **more}


@dataclass(frozen=True)
class AskedHub(Hub):
    """With a server of processes that know this Hub and no other."""

    home: Path
    """Where they keep what is kept of a Hub."""
    forks: Forks

    def clear_home(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def asked(root: Path, *modules: str, page_size: int = 1000) -> Iterator[AskedHub]:
    """Serves `root`, and forks that have imported these modules: what libraries read when they are imported is of this Hub."""
    with running(root, page_size) as hub:
        home = hub.root.parent / f"{hub.root.name}-home"
        forks = Forks(hub.environment(home, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""), *modules)
        try:
            yield AskedHub(hub.root, hub.port, home, forks)
        finally:
            forks.close()


@contextmanager
def running(root: Path, page_size: int = 1000) -> Iterator[Hub]:
    """Serves `root` from a process of its own for as long as the context lasts."""
    arguments = ["--root", str(root), "--port", "0", "--page-size", str(page_size)]
    checkout = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.hub_server", *arguments], cwd=checkout, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Hub(root.resolve(), int(process.stdout.readline()))
        finally:
            process.terminate()


def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with datasets/, models/ and files/")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--page-size", type=int, default=1000, help="entries of a tree listing's page")
    options = parser.parse_args()
    server = Server(options.root, options.port, options.page_size)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
