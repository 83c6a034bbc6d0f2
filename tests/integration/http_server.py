"""A file server on loopback, in a process of its own, with Range, ETag, a request log and faults on demand.

    with serve(folder) as server:
        server.inject("a.zst", {"do": "reset", "after": 1000}, {"do": "status", "code": 503})
        ...read server.url("a.zst")...
        server.log()        # [{"path": "/a.zst", "range": "bytes=0-99", "status": 206, "authorization": None}, ...]

Each fault is spent on one request of its path, in order; a fault with "times": N on N of them. What a fault may do:

    reset           after `after` bytes of the body the connection is reset
    short           after `after` bytes it is closed
    stall           after `after` bytes nothing more comes
    trickle         the body comes in pieces of `bytes` bytes
    status          answers `code` with `headers` and no body
    html            answers 200 with an HTML page
    html_untyped    likewise, as application/octet-stream
    drip            headers come one by one, slowly and without end
    flip            the lowest bit of the byte `at` of the file is another one
    redirect        answers 302 to `to`
    none            answers as if there were no fault

and with any of them: "ranges": false answers 200 with everything, "shift": N answers with bytes N further on than asked
for, "length": false leaves Content-Length out, with "chunked": true the body tells its end itself, "weak": true makes the ETag
a weak one, "encoding": NAME is told as the Content-Encoding, "replace_with": NAME makes the path give that file from then on.
HEAD tells the size of a file whose name does not begin with "untold-". A file whose name begins with "untagged-" has a
Last-Modified in place of an ETag.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import http.server
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

HTML = b"<!DOCTYPE html><html><head><title lang=en>\n Sign&nbsp;in </title></head><body>Please.</body></html>"


class Server:
    """The test's side: where the server is, what it shall do, what it was asked."""

    def __init__(self, port: int):
        self.port = port

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def inject(self, path: str, *faults: dict[str, Any]) -> None:
        self._control("POST", json.dumps({"path": "/" + path, "faults": faults}))

    def forget(self) -> None:
        """Drop all faults and the log."""
        self._control("DELETE", None)

    def log(self) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = json.loads(self._control("GET", None))
        return requests

    def _control(self, method: str, body: str | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, "/_control", body)
            return connection.getresponse().read()
        finally:
            connection.close()


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder from a new process until the block ends."""
    with subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.terminate()


def flipped(content: bytes, at: int) -> bytes:
    """A content with the lowest bit of a byte changed."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    faults: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    replaced: ClassVar[dict[str, str]] = {}
    requests: ClassVar[list[dict[str, Any]]] = []
    lock = threading.Lock()

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            queue = self.faults.setdefault(order["path"], [])
            for fault in order["faults"]:
                queue.extend([fault] * fault.get("times", 1))
        self.answer(200, {}, b"")

    def do_DELETE(self) -> None:
        with self.lock:
            self.faults.clear()
            self.replaced.clear()
            self.requests.clear()
        self.answer(200, {}, b"")

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/_control":
            return self.answer(200, {}, json.dumps(self.requests).encode())
        with self.lock:
            queue = self.faults.get(path, [])
            fault = queue.pop(0) if queue else {"do": "none"}
            file = self.folder / self.replaced.get(path, path.lstrip("/"))
            if "replace_with" in fault:
                self.replaced[path] = fault["replace_with"]
        return self.answer_file(file, fault)

    def do_HEAD(self) -> None:
        file = self.folder / urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        self.send_response(405 if file.name.startswith("untold-") else 200 if file.is_file() else 404)
        if file.is_file():
            self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()

    def answer_file(self, file: Path, fault: dict[str, Any]) -> None:
        do = fault["do"]
        if do == "status":
            headers = dict(fault.get("headers", {}))
            if "retry_date_in" in fault:
                headers["Retry-After"] = email.utils.formatdate(time.time() + fault["retry_date_in"], usegmt=True)
            return self.answer(fault["code"], headers, b"")
        if do == "redirect":
            return self.answer(302, {"Location": fault["to"]}, b"")
        if do == "drip":
            return self.drip()
        if do in ("html", "html_untyped"):
            return self.answer(200, {"Content-Type": "text/html" if do == "html" else "application/octet-stream"}, HTML)
        if not file.is_file():
            return self.answer(404, {}, b"")
        content = file.read_bytes()
        etag = f'{"W/" if fault.get("weak") else ""}"{hashlib.sha256(content).hexdigest()[:16]}"'
        tag = {"ETag": etag}
        if self.path.startswith("/untagged-"):
            tag = {"Last-Modified": email.utils.formatdate(file.stat().st_mtime, usegmt=True)}
        headers = {**tag, "Content-Type": "application/octet-stream"}
        if "encoding" in fault:
            headers["Content-Encoding"] = fault["encoding"]
        if do == "flip":
            content = flipped(content, fault["at"])
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and fault.get("ranges", True):
            start, stop = int(asked[1]), min(len(content), int(asked[2] or len(content)) + 1)
            if start >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            start += fault.get("shift", 0)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[start:stop]
        return self.answer(status, headers, content, fault)

    def drip(self) -> None:
        with self.lock:
            self.requests.append({"path": self.path, "range": self.headers.get("Range"), "status": 200})
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            self.wfile.write(b"y")
            self.wfile.flush()
            time.sleep(0.05)

    def answer(self, status: int, headers: dict[str, str], content: bytes, fault: dict[str, Any] | None = None) -> None:
        fault = fault or {"do": "none"}
        if not self.path.startswith("/_control"):
            asked = {"path": self.path, "range": self.headers.get("Range"), "authorization": self.headers.get("Authorization")}
            if "X-Api-Key" in self.headers:
                asked["key"] = self.headers["X-Api-Key"]
            with self.lock:
                self.requests.append({**asked, "status": status})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.get("length", True):
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
        if fault.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        self.end_headers()
        do = fault["do"]
        if do in ("reset", "short", "stall"):
            self.wfile.write(content[: fault["after"]])
            self.wfile.flush()
            if do == "stall":
                self.connection.settimeout(60)
                self.connection.recv(1)  # until the client gives up
            if do == "reset":
                time.sleep(0.05)  # what was sent arrives before the reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
        elif do == "trickle":
            for start in range(0, len(content), fault["bytes"]):
                self.wfile.write(content[start : start + fault["bytes"]])
                self.wfile.flush()
                time.sleep(0.002)
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: the log is asked for."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError, ValueError):
            self.close_connection = True  # the client went away, or a fault closed the connection


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
