"""Plans of small corpora, and what their lanes and steps give."""

from __future__ import annotations

from pathlib import Path

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.lane import Lane
from stream_pretrain.data.lanes.readers import Readers
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, first_cursors
from tests.corpora import word_tokenizer

TOKENIZER = word_tokenizer()


def plan_for(folder: Path, **options: object) -> StreamPlan:
    in_data = {name: value for name, value in options.items() if name in DataConfig.__dataclass_fields__}
    in_train = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    in_objective = {name: value for name, value in options.items() if name in ObjectiveConfig.__dataclass_fields__}
    config = Config(
        data=DataConfig(**{"dataset": str(folder), "sequence_length": 64, "lanes": 4, "window_bytes": 12_000} | in_data),
        train=TrainConfig(**{"max_steps": 1000, "global_batch_size": 8} | in_train),
        objective=ObjectiveConfig(**in_objective),
    )
    return stream_plan(config, TOKENIZER)


def lane(plan: StreamPlan, number: int, cursors: LaneCursors | None = None) -> Lane:
    sources = plan.sources
    readers = [Readers(source) for source in sources]
    return Lane(plan, number, plan.encoder.build(), readers, cursors or (Cursor(),) * len(sources))


def rows_of(lane: Lane, count: int) -> list[list[int]]:
    picks = [lane.next_row() for _ in range(count)]
    return [pick[1].rows.input_ids[pick[2]].tolist() for pick in picks if pick is not None]


def texts_of(row: list[int]) -> list[int]:
    """Numbers of the documents that begin in a row."""
    tokens = TOKENIZER.convert_ids_to_tokens(row)
    return [
        int("".join(token.removeprefix("##") for token in tokens[i + 1 : i + 7]))
        for i, token in enumerate(tokens)
        if token == "doc"
    ]


def ledger(
    plan: StreamPlan, steps: int, workers: int, cursors: list[LaneCursors] | None = None
) -> tuple[list, list[LaneCursors]]:
    """What the steps see, as plain values; and where the lanes stand after them."""
    seen = []
    cursors = list(cursors or first_cursors(plan.layout.lanes, len(plan.sources)))
    with StepStream(plan, cursors, workers=workers) as stream:
        for _ in range(steps):
            step = next(stream)
            seen.append(
                [
                    step.row_lane.tolist(),
                    step.row_source.tolist(),
                    *(value.tolist() for part in (step.rows, step.labelled) for value in vars(part).values()),
                ]
            )
            for number, of_sources in zip(step.lanes.tolist(), step.cursors.tolist(), strict=True):
                cursors[number] = tuple(Cursor(*cursor) for cursor in of_sources)
    return seen, cursors
