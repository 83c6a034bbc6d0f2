"""What the terminal shows: the phases of the start, one line of progress, notices and warnings.

On a terminal the last step is one line rewritten in place, with everything else above it. Anywhere else (a pipe, a
file, a batch system) there are plain lines only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TextIO

from stream_pretrain.redaction import printable


class Progress:
    """Writes to `stream`; with none, as on every rank but the first, it is silent."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._status = ""  # the line that may still change
        self._drawn = 0  # characters of it on the terminal
        self._first_share: tuple[float, float] | None = None  # the share of the run and the time that ETA counts from
        self._lock = threading.RLock()  # a checkpoint is announced by the thread that writes it

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show that `name` goes on, what it has found so far (given to the yielded function), and how long it took."""
        started = monotonic()
        line = f"{name}…"

        def found(text: str) -> None:
            nonlocal line
            with self._lock:
                line = f"{name}… {printable(text)}"
                self._status = line
                self._draw()

        with self._lock:
            status, self._status = self._status, line
            self._draw()
        try:
            yield found
        except BaseException:
            found("failed")
            raise
        finally:
            with self._lock:
                self._status = status
                self._line(f"{line} ({human_duration(monotonic() - started)})")

    def notice(self, text: str) -> None:
        """Show a line that stays: one, whatever names and values are in it."""
        with self._lock:
            self._line(printable(text))

    def warning(self, text: str) -> None:
        """Show a line that stays, marked as a warning."""
        self.notice(f"warning: {text}")

    def step(self, step: int, max_steps: int | None, share: float, metrics: Mapping[str, float | int]) -> None:
        """Show where training stands: rewritten in place on a terminal, a line of its own elsewhere.

        share: of the run that is done; it says when the end comes, also where epochs are what ends it.
        """
        if self._first_share is None:
            self._first_share = (share, monotonic())
        parts = [f"step {step:,}" if max_steps is None else f"step {step:,}/{max_steps:,}"]
        parts += [show(metrics[name]) for name, show in _SHOWN.items() if name in metrics]
        first, since = self._first_share
        if first < share < 1:
            parts.append(f"ETA {human_duration((monotonic() - since) / (share - first) * (1 - share))}")
        with self._lock:
            if self._live:
                self._status = "  ".join(parts)
                self._draw()
            else:
                self._line("  ".join(parts))

    def close(self) -> None:
        """Leave the last state on the terminal, and the cursor below it."""
        with self._lock:
            if self._drawn:
                self._write("\n")
            self._status, self._drawn = "", 0

    def _line(self, text: str) -> None:
        self._write(f"\r{text.ljust(self._drawn)}\n" if self._drawn else f"{text}\n")
        self._drawn = 0
        self._draw()

    def _draw(self) -> None:
        if not self._live or not (self._status or self._drawn):
            return
        assert self._stream is not None
        columns = _columns(self._stream)
        shown = self._status[: columns - 1]  # a full line would wrap, and could not be rewritten
        self._write(f"\r{shown.ljust(min(self._drawn, columns - 1))}")
        self._drawn = len(shown)

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def _columns(terminal: TextIO) -> int:
    with suppress(OSError):  # it was closed
        return os.get_terminal_size(terminal.fileno()).columns or 80  # some terminals say 0
    return 80


def human_count(number: float) -> str:
    """A number in at most four characters and a letter: 950, 1.2k, 34M."""
    return _scaled(number, ("", "k", "M", "G", "T"))


def human_bytes(number: float) -> str:
    """Bytes in decimal units: 950 B, 1.2 kB, 34 MB."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"))


def human_duration(seconds: float) -> str:
    """Seconds in the two units that matter: 0.2 s, 45 s, 3m05s, 3h12m, 2d04h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= 999.5 and power + 1 < len(units):
        number, power = number / 1000, power + 1
    decimals = 1 if power > 0 and abs(number) < 9.95 else 0
    return f"{number:.{decimals}f}{units[power]}"


_SHOWN: Mapping[str, Callable[[float], str]] = {
    "train/loss": lambda loss: f"loss {loss:.4f}",
    "train/lr": lambda rate: f"lr {rate:.2e}",
    "train/tokens_per_second": lambda rate: f"{human_count(rate)} tokens/s",
    "train/data_wait_fraction": lambda share: f"data wait {share:.0%}",
}
