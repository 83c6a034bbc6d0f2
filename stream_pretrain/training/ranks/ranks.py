"""The processes of a run, and their collectives: broadcast, gather, sum and barrier keep them in step."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from stream_pretrain import exit_codes
from stream_pretrain.errors import StreamPretrainError
from stream_pretrain.training.ranks.signals import Interrupted

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. Methods that communicate are called by all ranks."""

    index: int = 0
    world: int = 1
    cpu_group: dist.ProcessGroup | None = None
    """For CPU tensors; None for a single rank."""

    @classmethod
    def of(cls, index: int, world: int, timeout: timedelta) -> Self:
        """Called by all ranks. timeout: of collectives on CPU tensors."""
        group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        return cls(index, world, group)

    @property
    def is_first(self) -> bool:
        """Whether this process reports, writes and lists for all."""
        return self.index == 0

    def from_first(self, action: Callable[[], T]) -> T:
        """Run an action on the first rank and broadcast its result.

        If it fails, the first rank raises the error, and the others exit silently with the same code.
        Raises: Interrupted when the first rank is asked to stop.
        """
        if self.world == 1:
            return action()
        outcome: list[Any] = [None, None]  # the value, or the exit code of a failure
        failure: BaseException | None = None
        if self.is_first:
            try:
                outcome[0] = action()
            except BaseException as error:
                # A BaseException is a request to stop.
                outcome[1] = exit_codes.of_error(error) if isinstance(error, Exception) else 0
                failure = error
        try:
            dist.broadcast_object_list(outcome)
        finally:  # ranks that a signal has ended receive nothing
            if failure is not None:
                raise failure
        value, code = outcome
        if code is not None:
            raise SystemExit(code) if code else Interrupted
        return value  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a small tensor on the device by its sum over the ranks."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def sum_on_cpu(self, tensor: torch.Tensor) -> None:
        """Replace a small CPU tensor by its sum over the ranks."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.cpu_group)

    def exchange(self, outgoing: Mapping[int, T], senders: Iterable[int]) -> dict[int, T]:
        """Send values to some ranks, and receive one from each of `senders`, which must send it."""
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

    def broadcast(self, tensors: Iterable[torch.Tensor], device: torch.device) -> None:
        """Overwrite tensors, of the same shapes on all ranks, with those of the first rank.

        device: where the backend of the process group needs tensors to be.
        """
        if self.world > 1:
            for tensor in tensors:
                sent = tensor.to(device)
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)

    def wait(self) -> None:
        """Wait for all ranks: a barrier."""
        if self.world > 1:
            dist.barrier()

    def named(self, error: StreamPretrainError) -> StreamPretrainError:
        """The error with the number of this rank, where there are several."""
        first, *more = error.args
        return error if self.world == 1 else type(error)(f"rank {self.index}: {first}", *more)
