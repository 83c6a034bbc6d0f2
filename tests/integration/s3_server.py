"""An S3 on the loopback, as moto serves it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """An S3 with the files of a folder in a bucket, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, env=os.environ | keys, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline, "the S3 does not start"
                    time.sleep(0.1)
            import s3fs

            store = s3fs.S3FileSystem(**s3_options(port), skip_instance_cache=True)
            store.mkdir("bucket")
            for file in folder.iterdir():
                store.pipe_file(f"bucket/{file.name}", file.read_bytes())
            yield port
        finally:
            process.terminate()


def s3_options(port: int) -> dict[str, Any]:
    quick = {"retries": {"max_attempts": 1}, "read_timeout": 0.5, "connect_timeout": 5}
    return {"key": "test", "secret": "test", "endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": quick}
