"""The program, `stream-pretrain` or `python -m stream_pretrain`: it answers signals before it imports anything else."""

import os
import signal
import sys
from types import FrameType

from stream_pretrain import exit_codes


def main() -> int:
    """Run the command of `sys.argv`; returns an exit code of `exit_codes`."""
    before = {number: signal.getsignal(number) for number in exit_codes.SIGNALS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as SIGHUP under `nohup`
            signal.signal(number, _leave)
    from stream_pretrain import cli

    code = cli.main(begins=give_back)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the run has said how it ended: no traceback of what Python does at exit
    return code


def _leave(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"stopped by {name} before anything was done; the same command starts it again\n".encode())
    os._exit(exit_codes.of_stopped_start(name))


if __name__ == "__main__":
    sys.exit(main())
