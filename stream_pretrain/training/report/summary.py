"""Lines about evaluations, and the summary at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from stream_pretrain.training.state.totals import Totals
from stream_pretrain.units import human_count, human_duration


class HeldOut(NamedTuple):
    """A loss on the evaluation set, and the step it was found at."""

    loss: float
    step: int


def held_out_in_words(found: HeldOut, best: HeldOut | None) -> str:
    """A held-out loss, and the best one of the run; None where there is no other."""
    perplexity = math.inf if found.loss > 700 else math.exp(found.loss)
    shown = f"{perplexity:.2f}" if perplexity < 100 else human_count(perplexity) if perplexity < 1e15 else f"{perplexity:.0e}"
    text = f"held-out loss {found.loss:.4f}, perplexity {shown}"
    if best is None:
        return text
    return f"{text}, the best so far" if best == found else f"{text}, best {best.loss:.4f} at step {best.step:,}"


def summary(
    totals: Totals, before: Totals, seconds: float, loss: float, held_out: HeldOut | None, best: HeldOut | None
) -> Iterator[str]:
    """The last lines of a run.

    before, seconds: the totals before this start, and how long it trained. loss: of the last line of metrics.
    """
    rate = human_count((totals.tokens - before.tokens) / seconds)
    counts = f"{human_count(totals.tokens)} tokens, {human_count(totals.documents)} documents in all"
    first = before.step + 1
    steps = f"step {first:,}" if first == totals.step else f"steps {first:,}-{totals.step:,}"
    yield f"{steps} in {human_duration(seconds)} ({rate} tok/s); {counts}"
    if held_out is not None:
        yield f"loss {loss:.4f}, {held_out_in_words(held_out, best)}"
    else:
        yield f"loss {loss:.4f}" + (f", best held-out loss {best.loss:.4f} at step {best.step:,}" if best else "")
    unused = {"skipped": totals.skipped, "without text": totals.empty, "filtered": totals.filtered}
    if any(unused.values()):
        yield "documents not trained on: " + ", ".join(f"{count:,} {why}" for why, count in unused.items() if count)
