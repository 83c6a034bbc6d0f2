"""The reason why a rank ends, for the summary that torchrun prints last."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from stream_pretrain.redaction import printable
from stream_pretrain.training.files.atomic_files import replace_file


def tell_launcher(why: str, exit_code: int) -> None:
    """Write one line to torchrun's error file; does nothing under other launchers.

    The format is that of `torch.distributed.elastic.multiprocessing.errors.ErrorHandler`. The exit code, which torchrun does
    not pass on, is for scripts.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        line = printable(" ".join(why.split("\n")))  # torchrun prints it as it is
        more = {"py_callstack": line, "timestamp": str(int(time.time())), "exit_code": exit_code}
        reason = {"message": line, "extraInfo": more}
        with suppress(OSError):  # it is on stderr as well
            replace_file(Path(path), [json.dumps({"message": reason}).encode()])
