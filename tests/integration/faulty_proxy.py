"""A proxy on loopback, in a process of its own, that stands in front of any server and does what `http_server` can do.

    with proxied(upstream_port) as proxy:
        proxy.inject("bucket/a.zst", {"do": "reset", "after": 1000})
        ...read proxy.url("bucket/a.zst")...

Faults meet GET requests of a path. "replace_with" names another path of the server behind.
"""

from __future__ import annotations

import http.client
import http.server
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.integration.http_server import HTML, Handler, Server

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "date", "server", "keep-alive"}


@contextmanager
def proxied(upstream: int) -> Iterator[Server]:
    """Stand in front of the server at a port until the block ends."""
    command = [sys.executable, "-m", "tests.integration.faulty_proxy", str(upstream)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.terminate()


class Proxy(Handler):
    upstream: int

    def do_GET(self) -> None:  # noqa: N802 (the names http.server calls)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/_control":
            return super().do_GET()
        with self.lock:
            queue = self.faults.get(path, [])
            fault = queue.pop(0) if queue else {"do": "none"}
            target = self.replaced.get(path)
            if "replace_with" in fault:  # from the next request on
                self.replaced[path] = fault["replace_with"]
        if fault["do"] == "status":
            return self.answer(fault["code"], dict(fault.get("headers", {})), b"")
        if fault["do"] == "drip":
            self.drip()
        if fault["do"] == "html":
            return self.answer(200, {"Content-Type": "text/html"}, HTML)
        return self.pass_on(fault, target)

    def do_HEAD(self) -> None:  # noqa: N802
        self.pass_on({"do": "none"}, self.replaced.get(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)))

    def do_POST(self) -> None:  # noqa: N802
        if self.path == "/_control":
            return super().do_POST()
        return self.pass_on({"do": "none"}, None)

    do_PUT = do_POST  # noqa: N815

    def pass_on(self, fault: dict[str, Any], target: str | None) -> None:
        """What the server behind answers, as the fault lets it through; `target` is asked for in place of the path."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        if not fault.get("ranges", True):
            headers = {name: value for name, value in headers.items() if name.lower() != "range"}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behind = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            behind.request(self.command, self.path if target is None else target, body, headers)
            response = behind.getresponse()
            content = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            if self.command == "HEAD":
                return self.answer_head(response.status, kept, response.getheader("Content-Length") or "0")
            return self.answer(response.status, kept, content, fault)
        finally:
            behind.close()

    def answer_head(self, status: int, headers: dict[str, str], length: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()


def main() -> None:
    Proxy.upstream = int(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()


@dataclass(frozen=True)
class Store:
    """A server behind a proxy that can fail."""

    proxy: Server
    url: str
    """Of a shard, but for its name."""
    path: str
    """Where the bytes of a shard are asked for at last, but for its name."""
    storage_options: dict[str, Any]
