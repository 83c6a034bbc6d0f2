"""The results of a verification, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stream_pretrain.units import aligned
from stream_pretrain.verification.proof import Outcome, median


def lines_of(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A table of the trials, and where one differs first."""
    head = ["run", "rows", "losses", "weights", "lost", "repeated", "resumes", "seconds to resume"]
    yield from aligned([head, *([outcome.trial.name, *_cells(outcome)] for outcome in outcomes)])
    yield ""
    wrong = [outcome for outcome in outcomes if not outcome.proven]
    for outcome in wrong:
        if outcome.fault is not None:
            yield f"{outcome.trial.name}: {outcome.fault}"
        if (difference := outcome.comparison.first_difference) is not None:
            yield f"{outcome.trial.name}: {difference.message}"
        elif outcome.fault is None and outcome.weights_equal is False:
            yield (
                f"{outcome.trial.name}: all rows and losses are equal, but the weights or the state of the optimizer after "
                f"step {outcome.trial.baseline.last} are not"
            )
    if wrong:
        yield f"NOT proven: {len(wrong)} of {len(outcomes)} runs are not as if nothing had happened"
    else:
        resumes = sum(len(outcome.seconds_to_resume) for outcome in outcomes)
        yield f"proven: {len(outcomes)} runs, resumed {resumes} times, are as if nothing had happened"


def _cells(outcome: Outcome) -> Iterator[str]:
    found, tolerance = outcome.comparison, outcome.trial.tolerance
    yield "equal" if found.rows_equal else "DIFFER"
    yield ("equal" if not tolerance else f"within {tolerance:g}") if found.losses_equal else "DIFFER"
    yield {True: "equal", False: "DIFFER", None: "not compared"}[outcome.weights_equal]
    yield f"{found.documents_lost:,}"
    yield f"{found.documents_repeated:,}"
    yield f"{len(outcome.seconds_to_resume)}"
    seconds = median(outcome.seconds_to_resume)
    yield "none" if seconds is None else f"{seconds:.1f}"
