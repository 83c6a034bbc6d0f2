"""Speed does not cost quality: the loss curve is that of plain training on one padded document a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.errors import ModelError
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.start import model as start_model
from stream_pretrain.training.steps.loop import StepResult
from tests.corpora import documents, write_shard, write_tiny_bert
from tests.training.runs import prepared, steps_of, tiny_run, write_tiny_modernbert

STEPS = 15


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 1 to 60 words, for rows of 64 tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(2):
        write_shard(folder / f"s{i}", documents(300, seed=i, longest=60), "plain")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp(family) for family in ("bert", "modernbert")}
    write_tiny_bert(folders["bert"], dropout=0.0)
    write_tiny_modernbert(folders["modernbert"])
    return folders


def make_attention_matter(model: nn.Module) -> None:
    """Weights ten times as large as usual: with the usual ones a model as small hardly looks at the other tokens."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2, generator=generator)


def one_segment_a_row(step: StepRows) -> dict[str, Tensor]:
    """The rows of a step taken apart: every segment a row of its own, padded to the longest, labels at their places."""
    rows = step.trained
    dense = np.full(rows.input_ids.shape, -100)
    for row, positions, labels in zip(dense, rows.label_positions, rows.labels, strict=True):
        row[positions[labels != -100]] = labels[labels != -100]
    cuts = [(start, tokens) for start, tokens in rows.segments.T.tolist() if tokens]
    count, longest = len(cuts), max(tokens for _, tokens in cuts)
    batch = {
        name: np.full((count, longest), fill) for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    }
    for segment, (start, length) in enumerate(cuts):
        row, first = divmod(start, rows.length)
        batch["input_ids"][segment, :length] = rows.input_ids[row, first : first + length]
        batch["attention_mask"][segment, :length] = 1
        batch["labels"][segment, :length] = dense[row, first : first + length]
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def plain_copy(folder: Path, attention: str, weights: dict[str, Tensor]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(
        AutoConfig.from_pretrained(folder), attn_implementation=attention, dtype=torch.float32
    )
    model.load_state_dict(weights)
    return model.train()


def plain_training(model: PreTrainedModel, steps: list[StepResult], learning_rate: float) -> list[float]:
    """The losses of a training loop as in a textbook, on the same documents with the same masks, one large batch a step."""
    names = dict(model.named_parameters())
    spared = [name for name in names if name.endswith("bias") or "norm" in name.lower()]
    groups = [
        {"params": [weight for name, weight in names.items() if name not in spared], "weight_decay": 0.01},
        {"params": [names[name] for name in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=False, foreach=False)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(**one_segment_a_row(step.rows_seen)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.long), "sdpa"])
def test_packed_rows_follow_the_loss_curve_of_one_padded_document_a_row(
    family: str, attention: str, corpus: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_run(
        corpus, models[family], tmp_path, max_steps=STEPS, global_batch_size=16, micro_batch_size=4, learning_rate=3e-3,
        schedule="constant",
    )  # fmt: skip
    with prepared(config) as setup:
        make_attention_matter(setup.parallel.bare)
        initial = {name: weight.clone() for name, weight in setup.parallel.bare.model.state_dict().items()}
        steps = list(steps_of(setup))
    expected = plain_training(plain_copy(models[family], attention, initial), steps, learning_rate=3e-3)

    losses = [step.loss / step.labels for step in steps]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] - 0.3
    assert np.mean([step.segments / step.rows for step in steps]) > 1.5, "rows are packed"


class Leaking(PretrainingModel):
    """As if the device it trains on computed attention otherwise than the one it was loaded on."""

    def logits(self, input_ids: Tensor, position_ids: Tensor, cu_seq_lens: Tensor, label_positions: Tensor) -> Tensor:
        rows = torch.arange(0, input_ids.numel() + 1, input_ids.shape[1], dtype=torch.int32)
        return super().logits(input_ids, position_ids, rows, label_positions)


def test_a_leak_that_shows_only_where_it_trains_is_refused(
    corpus: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_model, "PretrainingModel", Leaking)
    with (
        pytest.raises(ModelError, match=r"not isolated on this cpu \(documents leak into each other by"),
        prepared(tiny_run(corpus, models["bert"], tmp_path, max_steps=1)),
    ):
        pass


def weights_after(corpus: Path, model: Path, out: Path, micro_batch_size: int) -> tuple[Tensor, list[StepResult]]:
    """All weights after an epoch of plain gradient descent in float64, on rows that hold one document each."""
    config = tiny_run(
        corpus, model, out, max_epochs=1, global_batch_size=8, micro_batch_size=micro_batch_size, learning_rate=0.1,
        schedule="constant", max_grad_norm=1e9,
    )  # fmt: skip
    config = replace(config, data=replace(config.data, packing="none"))
    with prepared(config) as setup:
        make_attention_matter(setup.parallel.bare)
        setup.parallel.bare.double()
        steps = list(steps_of(setup, torch.optim.SGD(setup.parallel.bare.parameters())))
        return torch.cat([weight.flatten() for weight in setup.parallel.bare.model.state_dict().values()]), steps


def test_the_update_does_not_depend_on_the_micro_batch_size(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_shard(folder / "s", documents(100, longest=60), "plain")
    expected, steps = weights_after(folder, models["bert"], tmp_path / "8", 8)
    labels_of_rows = [(step.rows_seen.trained.labels >= 0).sum(axis=1) for step in steps]
    assert max(row.max() for row in labels_of_rows) >= 6 * min(row.min() for row in labels_of_rows), "labels are uneven"
    assert (len(labels_of_rows[0]), len(labels_of_rows[-1])) == (8, 2), "the last step is filled up with padding"
    for size in (3, 1):  # with 3, the last micro-batch has a row of padding
        weights, others = weights_after(folder, models["bert"], tmp_path / str(size), size)
        assert [step.labels for step in others] == [step.labels for step in steps]
        assert [step.loss for step in others] == pytest.approx([step.loss for step in steps], rel=1e-6)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-7)
