"""A server on loopback, in this process, that says exactly what a test wants it to, however little that makes sense.

with answering(content, [b"HTTP/1.1 200 OK\\r\\nContent-Length: abc\\r\\n\\r\\n"]) as url:
    ...the first request gets that; the following ones the part of the content that they ask for...
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, repeat

Answer = bytes | Callable[[socket.socket], None]
"""What is sent before the connection is closed, or what sends it."""


def dripping(start: bytes, drop: bytes, seconds: float = 0.02) -> Callable[[socket.socket], None]:
    """Sends `drop` again and again, until nobody listens any more."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(seconds)

    return answer


@contextmanager
def answering(content: bytes, answers: Sequence[Answer], *, always: bool = False) -> Iterator[str]:
    """The URL of a file. always: its last answer is given to all further requests, in place of the content."""
    following = chain(answers, repeat(answers[-1] if always else None))
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = b""
            while b"\r\n\r\n" not in asked:
                piece = connection.recv(4096)
                if not piece:
                    return
                asked += piece
            with lock:
                answer = next(following)
            if answer is None:
                part = re.search(rb"range: bytes=(\d+)-(\d+)", asked, re.IGNORECASE)
                assert part is not None
                start, stop = int(part[1]), min(int(part[2]) + 1, len(content))
                told = f"Content-Range: bytes {start}-{stop - 1}/{len(content)}\r\nContent-Length: {stop - start}"
                answer = f"HTTP/1.1 206 Partial Content\r\n{told}\r\nConnection: close\r\n\r\n".encode() + content[start:stop]
            if isinstance(answer, bytes):
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            else:
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/shard.jsonl"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
