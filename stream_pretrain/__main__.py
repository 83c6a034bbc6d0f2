"""The program, `stream-pretrain` or `python -m stream_pretrain`: it handles signals before it imports anything else."""

import os
import signal
import sys
from types import FrameType

from stream_pretrain import exit_codes


def main() -> int:
    """Run the command of `sys.argv`; returns an exit code of `exit_codes`."""
    # None where a library that was loaded before Python handles a signal: it is left to that.
    before = {number: handler for number in exit_codes.SIGNALS if (handler := signal.getsignal(number)) is not None}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as SIGHUP under `nohup`
            signal.signal(number, _end)
    from stream_pretrain import cli

    code = cli.main(before_command=restore_handlers)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command has reported its end: no traceback while Python exits
    return code


def _end(number: int, _: FrameType | None) -> None:
    """End the process on a signal before a command takes it."""
    name = signal.Signals(number).name
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"stopped by {name} before anything was done; the same command starts it again\n".encode())
    os._exit(exit_codes.of_stopped_start(name))


if __name__ == "__main__":
    sys.exit(main())
