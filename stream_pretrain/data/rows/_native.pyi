from typing import Any

VERSION: int

def place(
    lengths: Any, order: Any, free: Any, framing: int, smallest: int, most: int, best: bool, placements: Any, /
) -> tuple[int, int, int, int]: ...
def assemble(
    placements: Any, ids: Any, offsets: Any, prefix: Any, suffix: Any, length: int, pad: int, grid: Any, segments: Any, /
) -> None: ...
def mask_tokens(
    input_ids: Any,
    filled: Any,
    special: Any,
    drawable: Any,
    order: tuple[int, int],
    lots: tuple[int, int],
    replacements: tuple[int, int],
    first_row: int,
    rate: float,
    mask_id: int,
    mask_share: float,
    random_share: float,
    shown: Any,
    label_positions: Any,
    labels: Any,
    /,
) -> None: ...
def fill_batch(
    records: Any,
    starts: Any,
    first: int,
    size: int,
    length: int,
    slots: int,
    pad: int,
    input_ids: Any,
    position_ids: Any,
    cu_seq_lens: Any,
    label_positions: Any,
    labels: Any,
    sources: Any,
    /,
) -> None: ...
