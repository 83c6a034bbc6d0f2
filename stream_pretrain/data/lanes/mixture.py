"""Which source the next row of a lane comes from: a smooth weighted round-robin with integer credits.

Before every row, each source earns its weight as credit; the source that gives the row pays the sum of the weights. A
source's credit, divided by that sum, is how many rows it is behind its share. No source may be a whole row ahead or behind:
only sources with a positive credit can give the next row, and a row is due before its source would fall a whole row behind.

Two rules keep this for any weights. Taking the source whose row is due first (earliest deadline first) is always safe.
Taking another one first is safe if the rows of the others that are due still fit: among any next h rows, at most h are due.
Lanes use the second rule to spread a rare source over the steps: each lane has a phase at which it prefers to give it.

Sources: Baruah et al., "Proportionate progress" (1996), for the rows in which a row may come; Horn, "Some simple
scheduling algorithms" (1974), for earliest due first and the count of due rows; Tijdeman, "The chairman assignment
problem" (1980).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_pretrain.data.randomness import MIXTURE, keyed_generator

PARTS = 1_000_000_000
"""Weights are rounded to integers of about this sum, so that credits are exact; after a million rows, a source is still within
a thousandth of a row of its share."""

_ROWS_AHEAD = 4096
"""Rows ahead for which due rows are counted, which bounds the cost of a choice; a source that is due later is not preferred."""


@dataclass(frozen=True)
class Shares:
    """The shares of the sources in the rows, from a step on."""

    from_step: int
    parts: tuple[int, ...]
    """Of about `PARTS`."""


def parts_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Integers in proportion to some weights; a source with a weight keeps at least one part."""
    total = sum(weights)
    assert total > 0, "validated before"
    return tuple(max(1, round(weight / total * PARTS)) if weight else 0 for weight in weights)


def largest_shares(schedule: Sequence[Shares]) -> list[float]:
    """The largest share of the rows that each source has in the schedule, 0 to 1."""
    of_source = zip(*([part / sum(shares.parts) for part in shares.parts] for shares in schedule), strict=True)
    return [max(fractions) for fractions in of_source]


def parts_at(schedule: Sequence[Shares], step: int, ended: Sequence[bool]) -> Sequence[int]:
    """The parts of the sources in a step, 0 for those that have ended.

    Where no source has one, the next change of the schedule that gives one applies early; empty without such a change.
    """
    now = max(number for number, shares in enumerate(schedule) if shares.from_step <= step)
    for shares in schedule[now:]:
        parts = [0 if over else part for part, over in zip(shares.parts, ended, strict=True)]
        if any(parts):
            return parts
    return ()


def phases_of(seed: int, lane: int, lanes: int, sources: int) -> tuple[int, ...]:
    """How far behind its share each source is, in a lane, when it should give a row: 1 to PARTS, which is a whole row.

    Spread evenly over the lanes, so that they do not all take a rare source in the same step.
    """
    places = [keyed_generator(seed, MIXTURE, source).permutation(lanes)[lane] for source in range(sources)]
    return tuple((int(place) + 1) * PARTS // lanes for place in places)


def choose(credits: Sequence[int], parts: Sequence[int], phases: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """The source of the next row, and the credits after it; a source without parts has ended, or has no share now.

    From credits of 0 on, no source is ever a whole row behind or ahead of its share.
    """
    if len(parts) == 1:  # a lane without a mixture asks for every run of its rows
        return 0, tuple(credits)
    total = sum(parts)
    earned = [credit + part if part else 0 for credit, part in zip(credits, parts, strict=True)]

    def rows_until(source: int, credit: int) -> int:
        return -((earned[source] - credit) // parts[source])

    behind = [source for source, credit in enumerate(earned) if credit > 0]
    due = {source: rows_until(source, total) for source in behind}
    first_due = min(behind, key=lambda source: due[source])
    wanted = min(behind, key=lambda source: rows_until(source, phases[source] * total // PARTS))
    chosen = wanted if due[first_due] > 0 and _may_go_first(wanted, due[wanted], earned, parts) else first_due
    return chosen, tuple(credit - total if source == chosen else credit for source, credit in enumerate(earned))


def _may_go_first(source: int, due: int, earned: Sequence[int], parts: Sequence[int]) -> bool:
    """Whether all rows of the others can still come in time when a source gives this row."""
    if earned[source] > sum(-credit for credit in earned if credit < 0):
        return True  # the others together are ahead by less than a row: no more rows are due than can be given
    if due > _ROWS_AHEAD:
        return False
    rows = np.arange(due)[:, None]
    rows_due = np.maximum((np.array(earned) + rows * np.array(parts)) // sum(parts), 0).sum(axis=1, keepdims=True)
    return bool((rows_due <= rows).all())
