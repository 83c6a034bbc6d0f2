"""When a run evaluates, and what it makes up after a stop."""

from __future__ import annotations

import math

from stream_pretrain.training.evaluation import evaluation
from stream_pretrain.training.evaluation.evaluation import EvaluationSet
from stream_pretrain.training.evaluation.evaluation_documents import compared_after
from stream_pretrain.training.files.out_files import BEST, METRICS
from stream_pretrain.training.files.records import best_evaluation, has_evaluation
from stream_pretrain.training.report.summary import HeldOut, held_out_in_words
from stream_pretrain.training.start.setup import Setup
from stream_pretrain.training.state.best_checkpoint import best_loss
from stream_pretrain.training.state.trainer_state import Best


class Evaluations:
    """Evaluations: every --eval-every steps, after --max-steps and at the end of the corpus.

    One that is missed because of a stop is due at the next start. Every method is called by all ranks.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, record = setup, setup.out.path / METRICS
        recorded, best = setup.ranks.from_first(
            lambda: (has_evaluation(record, setup.totals.step), best_evaluation(record, compared_after(setup.out.path)))
        )
        self._is_done = recorded or not setup.evaluation_sets  # of the last step
        self.last: HeldOut | None = None  # of this start
        self.best = best and HeldOut(*best)
        self._kept = self._kept_before()
        self._to_keep: Best | None = None

    def begin_step(self) -> None:
        """After a step: it is not evaluated yet."""
        self._is_done = not self._setup.evaluation_sets

    def is_due(self, *, at_end: bool = False) -> bool:
        """Whether to evaluate the last step now."""
        config, step = self._setup.config, self._setup.totals.step
        return not self._is_done and (at_end or step == config.train.max_steps or step % config.eval.every == 0)

    def may_come(self) -> bool:
        """Whether the last step may still be evaluated."""
        return not self._is_done

    def may_come_later(self, *, at_end: bool = False) -> bool:
        """Whether it may be evaluated after its metrics are logged: one is due, or the corpus may end there."""
        return self.is_due(at_end=at_end) or (not self._is_done and self._setup.config.train.max_epochs is not None)

    def run(self) -> dict[str, float]:
        """Loss and accuracy on the evaluation sets; empty, and still due, when a rank is asked to stop before the end."""
        setup = self._setup
        found: list[tuple[EvaluationSet, dict[str, float]]] = []
        for one in setup.evaluation_sets:
            with setup.progress.phase(f"evaluating {one.name}".rstrip(), stays=False), setup.parallel.accelerator.autocast():
                of_set = evaluation.evaluate(
                    setup.parallel.bare, one, setup.parallel.device, setup.ranks, stop=lambda: setup.stop.requested
                )
            if not of_set:
                return {}
            found.append((one, of_set))
        metrics = evaluation.of_all_sets(found)
        before, self.last = self.best, HeldOut(metrics["eval/loss"], setup.totals.step)
        self.best = min((one for one in (before, self.last) if one and math.isfinite(one.loss)), default=None)
        of_sets = ", ".join(f"{one.name} {of_set['eval/loss']:.4f}" for one, of_set in found if one.name)
        words = held_out_in_words(self.last, before and self.best)
        setup.progress.notice(f"step {setup.totals.step:,}: {words}{of_sets and f'; {of_sets}'}")
        self._keep_if_best(self.last.loss)
        self._is_done = True
        return metrics

    def take_best(self) -> Best | None:
        """The last evaluation where its checkpoint is to be kept; None once it was taken."""
        taken, self._to_keep = self._to_keep, None
        return taken

    def _kept_before(self) -> float | None:
        """The loss of the checkpoint in OUT/best. Called by all ranks."""
        setup = self._setup
        if not setup.evaluation_sets or not setup.config.run.keep_best:
            return None
        documents = evaluation.fingerprint_of(setup.evaluation_sets)
        return setup.ranks.from_first(lambda: best_loss(setup.out.path / BEST, documents, setup.progress.warning))

    def _keep_if_best(self, loss: float) -> None:
        setup = self._setup
        if setup.config.run.keep_best and math.isfinite(loss) and (self._kept is None or loss < self._kept):
            self._kept, self._to_keep = loss, Best(loss, evaluation.fingerprint_of(setup.evaluation_sets))
