"""What the ranks of a run tell each other."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from stream_pretrain.errors import SourceError
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.ranks.signals import Interrupted


@pytest.mark.parametrize("error", [Interrupted, SourceError])
def test_why_the_first_rank_ends_does_not_depend_on_others_that_have_left(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    def fails() -> None:
        raise error("why")

    monkeypatch.setattr(dist, "broadcast_object_list", closed)
    with pytest.raises(error, match="why"):
        Ranks(0, 2).from_first(fails)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        Ranks(0, 2).from_first(lambda: None)
