"""The chain from the bytes of a corpus to the rows of a step. Nothing in data/ depends on models or training.

    resolve    corpus/     ids, globs, URLs                         -> shards
    pin        lanes/      number of lanes, size of windows         -> what a run never changes
    deal       lanes/      which lane reads what in an epoch        -> stripes of shards
    read       transport/  bytes of a shard from a restart point
    window     documents/  bytes cut at the ends of documents       -> texts
    tokenize   rows/       texts of a shuffled window               -> ids
    pack       rows/       ids of documents                         -> rows
    label      rows/       positions to predict                     -> masks and labels
    stream     lanes/      the rows of a step, over ranks and workers, with the cursors after them

The only state is a cursor for each lane and source; it travels with the rows before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream_pretrain.config import Config
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.pinning import pin, row_layout, share_schedule, source_plans
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import Objective, objective_of
from stream_pretrain.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def stream_plan(config: Config, tokenizer: PreTrainedTokenizerFast, pinned: PinnedCorpus | None = None) -> StreamPlan:
    """The plan of the rows of a run; `StepStream(plan, cursors)` reads them.

    pinned: the corpus of a resumed run, or of the first rank; without it, the corpus is resolved.
    Raises: SourceError, ConfigError, ModelError, before any shard is read.

    A shard of six lines of 26 bytes, read in windows of 52 bytes by two lanes. Lane 1 is dealt the first and the last window,
    lane 0 the one between them; a row holds one document. Beside each row is the cursor of its lane after the step: windows
    read, the document of the shuffled window that the group of rows begins with, and rows taken of the group. In the last step,
    lane 0 has ended and lane 1 gives both rows.

    >>> config = Config(
    ...     data=DataConfig(dataset=shard, lanes=2, window_bytes=52, sequence_length=4, packing="none"),
    ...     objective=ObjectiveConfig("clm"),
    ...     train=TrainConfig(global_batch_size=2, max_epochs=1),
    ... )
    >>> with StepStream(stream_plan(config, tokenizer), first_cursors(2)) as stream:
    ...     for step in itertools.islice(stream, 3):
    ...         for lane, ids in zip(step.row_lane.tolist(), step.trained.input_ids):
    ...             cursor = Cursor(*step.cursors[lane, 0].tolist())
    ...             print(f"lane {lane}:", tokenizer.decode(ids), (cursor.window, cursor.next_document, cursor.taken))
    lane 0: [CLS] doc bamp [SEP] (0, 1, 0)
    lane 1: [CLS] doc bast [SEP] (0, 1, 0)
    lane 0: [CLS] doc ball [SEP] (1, 0, 0)
    lane 1: [CLS] doc bara [SEP] (1, 0, 0)
    lane 1: [CLS] doc band [SEP] (2, 0, 0)
    lane 1: [CLS] doc cora [SEP] (2, 0, 0)
    """
    pinned = pinned or pin(config, world=1)  # resolve, pin
    sources = source_plans(config, pinned)  # deal, read, window
    layout = row_layout(config, pinned.lanes)  # pack
    objective = objective_of(config, tokenizer)  # label
    encoder = objective.framed(Encoder.of(tokenizer, config.data.special_tokens))  # tokenize
    refuse_short_rows(layout.sequence_length, encoder, objective)
    return StreamPlan(sources, share_schedule(config.data), layout, encoder, objective)


def refuse_short_rows(sequence_length: int, encoder: Encoder, objective: Objective) -> None:
    """Refuse rows that are too short for a label. Raises: ConfigError."""
    framing = encoder.framing
    needed = objective.shortest_row(framing)
    if sequence_length < needed:
        raise ConfigError(
            f"--sequence-length {sequence_length} is too short for a label in a row: {framing} positions are special tokens; "
            f"give at least {needed}"
        )
