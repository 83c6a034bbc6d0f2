"""The processes of a run, and how they come to one mind."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from stream_pretrain import exit_codes
from stream_pretrain.errors import StreamPretrainError
from stream_pretrain.training.signals import Interrupted

T = TypeVar("T")
SPREAD_BYTES = 64 * 1024 * 1024
"""Tensors go from the first rank to the others in parts of this size, which is the memory it takes."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. Every method with more than one rank is called by all of them."""

    index: int = 0
    world: int = 1
    cpu_group: dist.ProcessGroup | None = None
    """By which they exchange what is not on a device; None where there is one."""

    @classmethod
    def of(cls, index: int, world: int, timeout: timedelta) -> Self:
        """This process among others; called by all of them."""
        group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        return cls(index, world, group)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks, writes and lists for all."""
        return self.index == 0

    def from_first(self, action: Callable[[], T]) -> T:
        """Do something on the first rank alone and give its answer to all.

        An error of the first rank ends them all; the others leave without a word, since it has said what is wrong.
        Raises: Interrupted when the first rank is asked to stop.
        """
        if self.world == 1:
            return action()
        answer: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                answer[0] = action()
            except BaseException as error:
                # What is no Exception is a request to stop.
                answer[1] = exit_codes.of_error(error) if isinstance(error, Exception) else 0
                failure = error
        dist.broadcast_object_list(answer)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise SystemExit(answer[1]) if answer[1] else Interrupted
        value: T = answer[0]
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a small tensor by its sum over the ranks."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def sum_on_cpu(self, tensor: torch.Tensor) -> None:
        """Replace a small tensor, which is not on a device, by its sum over the ranks."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.cpu_group)

    def exchange(self, outgoing: Mapping[int, T], senders: Iterable[int]) -> dict[int, T]:
        """Send a value to each of some ranks, and receive one from each of some; both have to expect it."""
        sent = []
        for rank, value in outgoing.items():
            payload = torch.frombuffer(bytearray(pickle.dumps(value, protocol=5)), dtype=torch.uint8)
            for tag, part in enumerate((torch.tensor([len(payload)]), payload)):
                sent.append((dist.isend(part, rank, self.cpu_group, tag), part))
        received: dict[int, T] = {}
        for rank in senders:
            size = torch.empty(1, dtype=torch.int64)
            dist.recv(size, rank, self.cpu_group, 0)
            payload = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(payload, rank, self.cpu_group, 1)
            received[rank] = pickle.loads(payload.numpy().data)
        for work, _ in sent:
            if work is not None:
                work.wait()
        return received

    def spread(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Overwrite contiguous tensors, which are alike on all ranks, by those of the first rank.

        device: where tensors have to be that ranks send each other.
        """
        if self.world == 1:
            return
        buffer = torch.empty(SPREAD_BYTES, dtype=torch.uint8, device=device)
        for pieces in _loads(tensors):
            sent = buffer[: sum(map(len, pieces))]
            parts = torch.split(sent, [len(piece) for piece in pieces])
            if self.is_first:
                for part, piece in zip(parts, pieces, strict=True):
                    part.copy_(piece)
            dist.broadcast(sent, src=0)
            if not self.is_first:
                for part, piece in zip(parts, pieces, strict=True):
                    piece.copy_(part)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def named(self, error: StreamPretrainError) -> StreamPretrainError:
        """The error with the rank it happened on, where there are several."""
        first, *more = error.args
        return error if self.world == 1 else type(error)(f"rank {self.index}: {first}", *more)


def _loads(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors as bytes, in loads of at most `SPREAD_BYTES`."""
    load: list[torch.Tensor] = []
    room = SPREAD_BYTES
    for tensor in tensors:
        for piece in torch.split(tensor.view(-1).view(torch.uint8), SPREAD_BYTES):
            if len(piece) > room:
                yield load
                load, room = [], SPREAD_BYTES
            load.append(piece)
            room -= len(piece)
    if load:
        yield load
