"""What a run says of its corpus is said over the lanes of all ranks."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stream_pretrain.data.lanes.cursor import Cursor
from stream_pretrain.data.lanes.row_layout import part_of
from stream_pretrain.training.ranks.ranks import Ranks
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.steps.corpus_notices import CorpusNotices
from tests.corpora import documents, write_shard
from tests.training.runs import prepared, tiny_run


@dataclass(frozen=True)
class FirstOfTwo(Ranks):
    """The first rank, with what another one gives."""

    other: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


@pytest.mark.parametrize(("epoch_of_other", "said"), [(0, True), (1, False)])
def test_a_source_that_only_another_rank_has_not_read_is_said(
    epoch_of_other: int, said: bool, model: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "s", documents(50), "plain")
    config = tiny_run(tmp_path, model, tmp_path / "out", max_steps=None, max_epochs=1)
    shown = io.StringIO()
    with prepared(config) as setup:
        own, of_other = (part_of(range(setup.pinned.lanes), rank, 2) for rank in range(2))
        ranks = FirstOfTwo(0, 2, other=[(Cursor(epoch=epoch_of_other),) for _ in of_other])
        notices = CorpusNotices(setup)
        setup.cursors[:] = [(Cursor(epoch=1),) for _ in own] + [(Cursor(),) for _ in of_other]  # those are not kept up to date
        notices._setup = replace(setup, ranks=ranks, progress=Progress(shown))
        notices.of_end()
    assert ("the run ends, as all sources with a weight are read" in shown.getvalue()) is said
