"""The terminal: phases of the start, a progress line, notices and warnings.

On a terminal, the progress line is redrawn in place, below everything else. In a pipe or a file, or on a dumb terminal, there
are plain lines.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

from stream_pretrain.redaction import printable
from stream_pretrain.terminal import columns_of, rewrites_lines
from stream_pretrain.units import human_count, human_duration

MEASURED = 0.05
"""Share of the run after which its pace predicts the number of steps better than the estimate made before it."""


class Progress:
    """Writes to `stream`; silent without one, as on all ranks but the first."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._live = stream is not None and rewrites_lines(stream)
        self._status: Sequence[str] = ()  # parts of the line that is redrawn
        self._drawn = 0  # its characters on the terminal
        self._first: tuple[int, float] | None = None  # step and time that the ETA is measured from
        self._lock = threading.RLock()  # other threads report too

    @contextmanager
    def phase(self, name: str, *, stays: bool = True) -> Iterator[Callable[[str], None]]:
        """Show a phase, its progress (passed to the yielded function), and its duration; stays: whether the line stays."""
        started = monotonic()
        line = f"{name}…"

        def found(text: str) -> None:
            nonlocal line
            with self._lock:
                line = f"{name}… {printable(text)}"
                self._status = (line,)
                self._draw()

        with self._lock:
            status, self._status = self._status, (line,)
            self._draw()
        try:
            yield found
        except BaseException as end:
            found("failed" if isinstance(end, Exception) else "stopped")  # a signal is no Exception
            raise
        finally:
            with self._lock:
                self._status = status
                if stays:
                    self._line(f"{line} ({human_duration(monotonic() - started)})")
                else:
                    self._draw()

    def notice(self, text: str) -> None:
        """Show one line that stays; control characters are escaped."""
        with self._lock:
            self._line(printable(text))

    def warning(self, text: str) -> None:
        """Show a warning, in one line that stays."""
        self.notice(f"warning: {text}")

    def step(
        self,
        step: int,
        max_steps: int | None,
        share: float,
        metrics: Mapping[str, float | int],
        about: float | None = None,
    ) -> None:
        """Show where training stands: rewritten in place on a terminal, a line of its own elsewhere.

        share: of the run that is done before the step.
        about: the steps of the run, as estimated before it.
        """
        first, since = self._first = self._first or (step, monotonic())
        steps = _all_steps(step, max_steps, share, about)
        all_steps = "" if steps is None else f"/{steps:,}" if steps == max_steps else f"/~{steps:,}"
        parts = [f"step {step:,}{all_steps}"]
        if steps is not None and first < step < steps:
            parts.append(f"ETA {human_duration((monotonic() - since) / (step - first) * (steps - step))}")
        parts += [show(metrics[name]) for name, show in _SHOWN.items() if name in metrics]
        with self._lock:
            if self._live:
                self._status = parts
                self._draw()
            else:
                self._line(_GAP.join(parts))

    def close(self) -> None:
        """Keep the last progress line, and move the cursor below it."""
        with self._lock:
            if self._drawn:
                self._write("\n")
            self._status, self._drawn = (), 0

    def _line(self, text: str) -> None:
        if self._drawn and self._stream is not None:
            text = f"\r{text.ljust(columns_of(self._stream) - 1)}"  # the terminal may have echoed ^C after what was drawn
        self._write(f"{text}\n")
        self._drawn = 0
        self._draw()

    def _draw(self) -> None:
        if not self._live or not (self._status or self._drawn):
            return
        assert self._stream is not None
        width = columns_of(self._stream) - 1  # a full line would wrap, and could not be rewritten
        shown = _fitting(self._status, width)
        self._write(f"\r{shown.ljust(min(self._drawn, width))}" + ("" if shown else "\r"))
        self._drawn = len(shown)

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def _fitting(parts: Sequence[str], width: int) -> str:
    """As many parts as fit; only the first is ever cut."""
    shown = "".join(parts[:1])[:width]
    for part in parts[1:]:
        if len(shown) + len(_GAP) + len(part) > width:
            break
        shown += _GAP + part
    return shown


def _all_steps(step: int, max_steps: int | None, share: float, about: float | None) -> int | None:
    """Steps of a run: `max_steps`, or where epochs end it sooner an estimate, rounded up to three digits."""
    if max_steps is not None and share <= step / max_steps:
        return max_steps
    found = (step - 1) / share if share >= MEASURED else about
    if found is None:
        return max_steps
    unit = 10.0 ** max(0, len(f"{found:.0f}") - 3)
    steps = max(step, round(math.ceil(found / unit - 1e-6) * unit))
    return steps if max_steps is None else min(steps, max_steps)


def rate_in_words(rate: float) -> str:
    """A learning rate: 5.00e-4, or 0 for a rounding error."""
    return "0" if rate < 1e-15 else f"{rate:.2e}".replace("e-0", "e-")


_GAP = "  "
_SHOWN: Mapping[str, Callable[[float], str]] = {
    "train/loss": lambda loss: f"loss {loss:.3f}",
    "train/tokens_per_second": lambda rate: f"{human_count(rate)} tok/s",
    "train/data_wait_fraction": lambda share: f"wait {share:.0%}",
    "train/lr": lambda rate: f"lr {rate_in_words(rate)}",
}
"""Parts of the line of progress, the most important ones first: a narrow terminal has no room for the last ones."""
