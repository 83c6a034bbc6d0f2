"""Metrics of the steps since the last log line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.source_lane import CAUSES
from stream_pretrain.data.lanes.step_rows import step_of
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors
from stream_pretrain.data.rows.train_rows import TrainRows
from stream_pretrain.model.flops import peak_bf16_flops, training_flops
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.state.totals import Totals
from stream_pretrain.training.steps.loop import StepResult


@dataclass
class StepMetrics:
    """The steps since the last log line; values are over all micro-batches and ranks."""

    plan: StreamPlan
    model: PreTrainedModel
    device: torch.device
    ranks: Ranks
    results: list[StepResult] = field(default_factory=list)
    """Without their rows: those of many steps, in pinned memory, would be too much."""
    flops: float = 0.0
    """Useful ones of this rank, where it has a GPU."""

    def add(self, result: StepResult) -> None:
        """Add a step."""
        if self.device.type == "cuda":
            self.flops += useful_flops(self.model.config, result.rows_seen.trained)
        self.results.append(replace(result, rows_seen=step_of([], [], [], self.plan)))

    def read(self, totals: Totals, cursors: Sequence[LaneCursors]) -> dict[str, float | int]:
        """The metrics of the steps so far, which are then forgotten. Called by all ranks."""
        results, self.results = self.results, []
        flops, self.flops = self.flops, 0.0
        updated = [result for result in results if result.updated]
        labels = max(1, sum(result.labels for result in updated))
        seconds = sum(result.seconds for result in results)
        tokens = sum(result.tokens for result in results)
        rows = sum(result.rows for result in results)
        own = [cursors[lane] for lane in part_of(range(len(cursors)), self.ranks.index, self.ranks.world)]
        epochs = [{lane[source].epoch for lane in own} for source in range(len(self.plan.sources))]
        source_epochs = [set().union(*of_ranks) for of_ranks in zip(*self.ranks.gather(epochs), strict=True)]
        waiting = sum(result.seconds_waiting for result in results) / seconds
        spent = np.sum([result.data_seconds for result in results], axis=0)
        metrics: dict[str, float | int] = {
            "train/loss": sum(result.loss for result in updated) / labels if updated else float("nan"),
            "train/masked_accuracy": sum(result.correct for result in updated) / labels,
            "train/lr": results[-1].learning_rate,
            "train/grad_norm": results[-1].grad_norm,
            "train/tokens_per_second": tokens / seconds,
            "train/data_wait_fraction": waiting,
            # Its parts, by what the data workers did during the wait.
            **{f"train/data_wait_{cause}": waiting * spent[i] / max(spent.sum(), 1e-9) for i, cause in enumerate(CAUSES)},
            "train/tokens": totals.tokens,
            "train/documents": totals.documents,
            "train/skipped_documents": totals.skipped,
            "train/empty_documents": totals.empty,
            "train/filtered_documents": totals.filtered,
            "train/skipped_stripes": totals.stripes,
            "train/skipped_steps": len(results) - len(updated),
            "train/epoch_least": min(map(min, source_epochs)),
            "train/epoch_most": max(map(max, source_epochs)),
            "train/real_token_fraction": tokens / (rows * self.plan.layout.sequence_length),
            "train/segments_per_row": sum(result.segments for result in results) / rows,
            "train/segments_per_document": totals.segments / max(1, totals.documents),
        }
        if len(source_epochs) > 1:
            metrics |= self._of_sources(updated, totals, source_epochs)
        return metrics | self._hardware(flops, seconds)

    def _of_sources(self, updated: Sequence[StepResult], totals: Totals, epochs: Sequence[set[int]]) -> dict[str, float | int]:
        """Metrics of each source of a mixture; the loss only where it gave labels."""
        metrics: dict[str, float | int] = {}
        for number, source in enumerate(self.plan.sources):
            name = f"train/{source.name}"
            labels = sum(result.source_labels[number] for result in updated)
            if labels:
                metrics[f"{name}/loss"] = sum(result.source_loss[number] for result in updated) / labels
            metrics[f"{name}/tokens"] = totals.source_tokens[number]
            metrics[f"{name}/documents"] = totals.source_documents[number]
            metrics[f"{name}/empty_documents"] = totals.source_empty[number]
            metrics[f"{name}/epoch_least"] = min(epochs[number])
            metrics[f"{name}/epoch_most"] = max(epochs[number])
        return metrics

    def _hardware(self, useful: float, seconds: float) -> dict[str, float | int]:
        """Memory, and model FLOP utilisation (MFU) where the peak of every device is known. Called by all ranks."""
        if self.device.type != "cuda":
            return {}
        metrics: dict[str, float | int] = {"train/memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30}
        # Gathered by every rank, whatever its GPU: ranks may have different ones.
        own = useful, peak_bf16_flops(torch.cuda.get_device_name(self.device))
        flops, peaks = zip(*self.ranks.gather(own), strict=True)
        if None not in peaks:
            metrics["train/mfu"] = sum(flops) / seconds / sum(peaks)
        return metrics


def useful_flops(config: PreTrainedConfig, rows: TrainRows) -> float:
    """FLOPs for the tokens and labels of these rows, without padding."""
    tokens = rows.segment_tokens
    return training_flops(config, tokens[tokens > 0], int((rows.labels >= 0).sum()))
