"""A corpus as ready micro-batches, for a training loop of your own."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import Config, DataConfig, ObjectiveConfig, TrainConfig, fixed_options, without_places
from stream_pretrain.config.validation import validate
from stream_pretrain.data.chain import stream_plan
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus
from stream_pretrain.data.lanes.cursor_checks import refuse_impossible
from stream_pretrain.data.lanes.pinning import pin, relocate
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.data.lanes.step_rows import StepRows
from stream_pretrain.data.lanes.stream import StepStream
from stream_pretrain.data.lanes.stream_plan import StreamPlan
from stream_pretrain.data.lanes.stream_state import LaneCursors, cursors_from, first_cursors, stream_state
from stream_pretrain.data.rows.batches import Batch, memory_for, micro_batches
from stream_pretrain.data.rows.engine_choice import choose
from stream_pretrain.data.rows.labels import IGNORED
from stream_pretrain.errors import CheckpointError, ConfigError, ModelError, StreamPretrainError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import StopRequest, leave_to_trainer
from stream_pretrain.training.ranks.watchdog import Watchdog
from stream_pretrain.training.steps.rows_of_rank import cursors_of_all_lanes, next_rows
from stream_pretrain.typed_json import from_json

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""Of the ranks' agreement on rows: one may wait for a server."""


class TokenStream(IterableDataset[dict[str, torch.Tensor]]):
    """The micro-batches of a rank, from the state on: a loop that loads the state of its last batch continues exactly.

    A step has `global_batch_size` rows over all ranks, the same on any number of ranks and workers; this rank gives
    `micro_batches_per_step` micro-batches of it, of one shape. Where rows run out, rows of padding without labels fill them.
    Iterating over it again continues where it stopped. It has its own workers: a DataLoader around it needs `num_workers=0` and
    `batch_size=None`, and must not read ahead if you save its state.

    A batch of B rows of L tokens, on `device`:

        input_ids        int64 [B, L]
        labels           int64 [B x P] of the labelled positions, -100 in empty slots; with `dense_labels` [B, L]
        label_positions  int64 [B x P] among the B x L positions; not with `dense_labels`
        position_ids     int64 [B, L], from 0 in every document
        cu_seq_lens      int32 [S + 1], where documents begin in the B x L positions; the last value repeats

    Rows hold several documents, which must not see each other: only a model of `prepare` takes such a batch. With
    `packing="none"`, a row has one document, and a batch is what any transformers model takes: input_ids, attention_mask and
    dense labels (of next tokens, such a model shifts them itself).
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | DataConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        objective: Literal["mlm", "clm"] | ObjectiveConfig = "mlm",
        sequence_length: int | None = None,
        packing: Literal["best_fit", "concat", "none"] | None = None,
        lanes: int | None = None,
        workers: int | None = None,
        global_batch_size: int = 256,
        micro_batch_size: int = 32,
        seed: int = 0,
        max_steps: int | None = None,
        max_epochs: int | None = None,
        dense_labels: bool = False,
        device: torch.device | str = "cpu",
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        """dataset: as --dataset, or all options of the corpus, a mixture too; those given here win over it.

        rank, world: taken from torch.distributed where it is initialised, else a single rank. Constructed by all ranks.
        Raises: ConfigError, SourceError, ModelError, before any document is read.
        """
        data = dataset if isinstance(dataset, DataConfig) else DataConfig(dataset=_place(dataset))
        given: dict[str, Any] = {"sequence_length": sequence_length, "packing": packing, "lanes": lanes, "workers": workers}
        self.config = Config(
            data=dataclasses.replace(data, **{name: value for name, value in given.items() if value is not None}),
            objective=objective if isinstance(objective, ObjectiveConfig) else ObjectiveConfig(name=objective),
            train=TrainConfig(
                max_steps=max_steps,
                max_epochs=max_epochs,
                global_batch_size=global_batch_size,
                micro_batch_size=micro_batch_size,
                seed=seed,
            ),
        )
        validate(self.config, needed=("data.dataset",))
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelError(
                f"the tokenizer is of type {type(tokenizer).__name__}: give one that AutoTokenizer loads, a fast one"
            )
        self.tokenizer = tokenizer
        self.dense_labels = dense_labels
        self.device = torch.device(device)
        self.is_prepared = False
        """Whether a model isolates the documents of a row, see `prepare`."""
        self._ranks = _ranks(rank, world)
        self._pinned = self._on_first(lambda: pin(self.config, self._ranks.world))
        self.plan = self._plan_of(self._pinned)
        self._begin(0, 0, first_cursors(self._pinned.lanes, len(self._pinned.sources)))

    def _plan_of(self, pinned: PinnedCorpus) -> StreamPlan:
        plan = stream_plan(self.config, self.tokenizer, pinned)
        self._refuse_without_group(plan)
        engine = self._on_first(lambda: choose(self.config.data.engine, plan.encoder).name)
        return dataclasses.replace(plan, encoder=dataclasses.replace(plan.encoder, engine=engine))

    def _on_first(self, action: Callable[[], T]) -> T:
        """The result of the first rank, which alone lists and requests; without a process group, each rank its own."""
        if self._ranks.cpu_group is None:
            return action()
        try:
            return self._ranks.from_first(action)
        except SystemExit as error:  # in a run, only the first rank reports an error
            raise StreamPretrainError("the first rank could not begin the stream: its error says why") from error

    def _refuse_without_group(self, plan: StreamPlan) -> None:
        layout, world = plan.layout, self._ranks.world
        shares = [len(part_of(range(layout.lanes), rank, world)) for rank in range(world)]
        even = len(set(shares)) == 1 and layout.global_batch_size % layout.lanes == 0 and not plan.can_end
        if world > 1 and self._ranks.cpu_group is None and not even:
            raise ConfigError(
                f"{world} ranks exchange rows: initialise torch.distributed first, or leave out max_epochs and give lanes "
                "that are a multiple of the ranks and divide global_batch_size"
            )

    def _begin(self, step: int, batches: int, cursors: list[LaneCursors]) -> None:
        self.step = step
        """Steps whose micro-batches were all given."""
        self._batches = batches  # given of the next one
        self._cursors = cursors  # of all lanes, after `step`; of those of other ranks see `_cursors_of_all`
        self._micro_batches: Iterator[Batch] | None = None
        self._read: StepRows | None = None
        self._stream: StepStream | None = None

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step on each rank, whose gradients are accumulated."""
        return self.plan.layout.micro_batches(self.config.train.micro_batch_size, self._ranks.world)[1]

    @property
    def is_between_steps(self) -> bool:
        """Whether the last micro-batch was the last one of its step."""
        return self._batches == 0

    @property
    def _rows_of_batch(self) -> int:
        return self.plan.layout.micro_batches(self.config.train.micro_batch_size, self._ranks.world)[0]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if get_worker_info() is not None:
            raise ConfigError(
                "each worker of the DataLoader would read every row: give it num_workers=0, and the stream workers"
            )
        if self.plan.layout.packing != "none" and not self.is_prepared:
            raise ModelError(
                "rows hold several documents, which an ordinary model mixes: pass your model through prepare(model, stream), "
                'or give packing="none"'
            )
        while (batch := self._next()) is not None:
            yield batch

    def _next(self) -> dict[str, torch.Tensor] | None:
        """The next micro-batch, with the state after it; None after the last step."""
        try:
            if self._micro_batches is None and not self._open_step():
                return None
            assert self._micro_batches is not None
            batch = self._tensors(next(self._micro_batches))
            self._count_batch()
        except BaseException:
            self.close()  # an interrupt may come anywhere: the next micro-batch is read again
            raise
        return batch

    def _open_step(self) -> bool:
        """Read the next step, and pass over the micro-batches that were given before the state was saved."""
        if self.config.train.max_steps is not None and self.step >= self.config.train.max_steps:
            self.close()
            return False
        if self._stream is None:
            self._stream = StepStream(
                self.plan,
                self._cursors_of_all(),
                step=self.step,
                rank=self._ranks.index,
                world=self._ranks.world,
                workers=self.config.data.workers,
                in_worker=leave_to_trainer,
                memory=memory_for(self.device),
            )
        # What a run has for its signals, and to report that it waits, is here the caller's.
        following = next_rows(self._stream, self._ranks, StopRequest(), Watchdog(self._ranks, warnings.warn))
        self._read, rows = following.read, following.trained
        if following.have_ended:
            self.close()
            return False
        batches = micro_batches(rows, self._rows_of_batch, self.micro_batches_per_step, self.plan.encoder.pad, self.device)
        self._micro_batches = itertools.islice(batches, self._batches, None)
        return True

    def _count_batch(self) -> None:
        """Set the state after a micro-batch, atomically: an interrupt leaves that before it."""
        batches = self._batches + 1
        if batches < self.micro_batches_per_step:
            self._batches = batches
            return
        assert self._read is not None
        cursors, step = self._cursors.copy(), self.step + 1
        self._read.advance(cursors)
        self.step, self._batches, self._cursors, self._micro_batches, self._read = step, 0, cursors, None, None

    def _tensors(self, batch: Batch) -> dict[str, torch.Tensor]:
        found = {"input_ids": batch.input_ids, "labels": batch.labels}
        alone = self.plan.layout.packing == "none"
        if alone or self.dense_labels:
            found["labels"] = _dense(batch, shifted=alone and self.plan.objective.causal)
        else:
            found["label_positions"] = batch.label_positions
        if alone:
            # Padding, a segment of its own, begins where the positions restart.
            begun = (batch.position_ids == 0).cumsum(dim=1) == 1
            return {**found, "attention_mask": begun.long()}
        return {**found, "position_ids": batch.position_ids, "cu_seq_lens": batch.cu_seq_lens}

    def state_dict(self) -> dict[str, Any]:
        """The state after the last micro-batch, of plain values, equal on all ranks. Called by all ranks.

        It loads on any number of ranks and workers where it is of the end of a step, else on as many ranks.
        """
        state = {
            **stream_state(self.step, self._cursors_of_all()),
            "micro_batches": self._batches,
            "ranks": self._ranks.world,
            "micro_batch_size": self._rows_of_batch,
            "corpus": json.loads(self._pinned.encoded),
            "fixed": self._fixed,
        }
        return {**state, "sha256": _digest(state)}

    def _cursors_of_all(self) -> list[LaneCursors]:
        """The cursors of all lanes: while it steps, a rank knows those of its own. Called by all ranks."""
        if self._ranks.cpu_group is not None:
            self._cursors = cursors_of_all_lanes(self._cursors, self._ranks)
        return self._cursors

    @property
    def _fixed(self) -> dict[str, Any]:
        """What decides the rows."""
        groups = ("data.", "objective.", "train.seed", "train.global_batch_size")
        options = without_places(fixed_options(self.config))
        fixed = {name: value for name, value in options.items() if name.startswith(groups)}
        return {**fixed, "tokenizer": self.plan.encoder.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the micro-batch that a state is of. Called by all ranks.

        Raises: CheckpointError for a state of another stream or one that was changed, SourceError where a shard has changed.
        """
        kinds = {"fixed": dict[str, Any], "corpus": dict[str, Any], "micro_batches": int, "step": int}
        if missing := {*kinds, "ranks", "micro_batch_size", "lanes"} - {*(state if isinstance(state, Mapping) else ())}:
            raise CheckpointError(f"this is not the state of a TokenStream: {min(missing)} is missing")
        was, corpus, batches, step = (from_json(kind, state[name], f"{name} of the state") for name, kind in kinds.items())
        for name, value in self._fixed.items():
            if name not in was or was[name] != value:
                before = was.get(name, "not recorded")
                raise CheckpointError(f"the state is of another stream: {name} was {before}, is {value}")
        here = {"ranks": self._ranks.world, "micro_batch_size": self._rows_of_batch}
        if batches and any(state[name] != value for name, value in here.items()):
            raise CheckpointError(
                f"the state is from inside a step, on {state['ranks']} ranks with micro-batches of "
                f"{state['micro_batch_size']} rows: load it there, or save at the end of a step"
            )
        if not 0 <= batches < self.micro_batches_per_step or step < 0:
            raise CheckpointError(f"the state is {batches} micro-batches after step {step}, which no stream writes")
        was_pinned = PinnedCorpus.from_json(corpus)
        pinned = self._on_first(lambda: relocate(self.config, was_pinned, self._ranks.world))
        plan = self._plan_of(pinned)
        cursors = cursors_from(state, step, pinned.lanes, "the state")
        refuse_impossible(cursors, plan, step, "the state")
        if "sha256" in state and state["sha256"] != _digest(state):  # an earlier version wrote none
            raise CheckpointError(
                "the state was changed since a stream wrote it (its sha256 is another one): use another state"
            )
        self.close()
        self._pinned, self.plan = pinned, plan
        self._begin(step, batches, cursors)

    def close(self) -> None:
        """End the workers. Iterating again begins new ones where the stream stands."""
        stream, self._stream, self._micro_batches, self._read = self._stream, None, None, None
        if stream is not None:
            stream.__exit__()

    def __getstate__(self) -> dict[str, Any]:
        """For copies, in other processes too, which continue where this stream stopped. Raises: ConfigError."""
        if self._ranks.cpu_group is not None:
            raise ConfigError(
                "a stream of torch.distributed cannot be copied or sent to another process: construct one there, and load the "
                "state_dict of this one; a DataLoader around it needs num_workers=0"
            )
        return {**self.__dict__, "_cursors": self._cursors.copy(), "_stream": None, "_micro_batches": None, "_read": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _digest(state: Mapping[str, Any]) -> str:
    """Of what a stream goes on from: an edited place in the corpus may well exist, and leads to other rows."""
    names = ("version", "step", "fields", "lanes", "micro_batches", "ranks", "micro_batch_size", "corpus", "fixed")
    content = json.dumps({name: state.get(name) for name in names}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _place(dataset: object) -> str:
    """A name or path of a corpus. Raises: ConfigError for anything else."""
    if not isinstance(dataset, str | os.PathLike):
        raise ConfigError(f"dataset is of type {type(dataset).__name__}: give a name, a path or a DataConfig")
    return os.fsdecode(dataset)


def _ranks(rank: int | None, world: int | None) -> Ranks:
    if (rank is None) != (world is None):
        raise ConfigError("give both rank and world, or neither")
    if dist.is_available() and dist.is_initialized():
        here = dist.get_rank(), dist.get_world_size()
        if rank is not None and (rank, world) != here:
            raise ConfigError(f"rank {rank} of {world} is not that of torch.distributed, {here[0]} of {here[1]}")
        return Ranks.of(*here, COLLECTIVE_TIMEOUT)
    if rank is None or world is None:
        return Ranks()
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is not one of {world}")
    return Ranks(rank, world)


def _dense(batch: Batch, *, shifted: bool) -> torch.Tensor:
    """int64 [B, L] labels at their positions, -100 elsewhere; shifted: each at the token that it is."""
    count, length = batch.input_ids.shape
    # Empty slots are at position 0 of their row: they go to a position after the last.
    places = torch.where(batch.labels == IGNORED, count * length, batch.label_positions + int(shifted))
    labels = torch.full((count * length + 1,), IGNORED, dtype=torch.int64, device=batch.labels.device)
    return labels.scatter(0, places, batch.labels)[:-1].view(count, length)
