"""What masking must know of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.rows.words import BEGINS, BEGINS_ALWAYS, CLASSES, token_edges
from stream_pretrain.errors import ModelError


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer, as arrays over its V ids."""

    mask_id: int
    special: NDArray[np.bool_]
    """[V] ids that are never masked."""
    drawable: NDArray[np.int32]
    """Ids that can replace a token: every id in use that is not special, and was not where it is kept in documents."""
    opens: NDArray[np.uint8]
    """[V] how the token's first character relates to words; empty when single tokens are selected."""
    closes: NDArray[np.uint8]
    """[V] the same for its last character."""

    @classmethod
    def of(
        cls, tokenizer: Any, selection: Literal["token", "whole_word", "span"] = "token", kept: Sequence[int] = ()
    ) -> Vocabulary:
        """Reads the arrays from a loaded fast tokenizer; where words begin only if `selection` needs it.

        kept: special tokens that documents have. They are content, each a word of its own: masked like any other, and never
        what replaces another.

        Raises:
            ModelError: the tokenizer has no mask token, or ids alone do not tell where its words begin.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: it has no mask token, which --objective.name mlm needs; "
                "use a tokenizer that has one, or --objective.name clm"
            )
        tokens: dict[str, int] = tokenizer.get_vocab()
        special = np.zeros(max(tokens.values()) + 1, dtype=np.bool_)
        special[tokenizer.all_special_ids] = True
        special[[token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        used = np.array(sorted(tokens.values()), dtype=np.int32)
        drawable = used[~special[used]]
        special[list(kept)] = False
        opens = closes = np.zeros(0, dtype=np.uint8)
        if selection != "token":
            opens, closes = token_edges(tokenizer, tokens, len(special))
            opens[list(kept)] = closes[list(kept)] = BEGINS_ALWAYS
        return cls(tokenizer.mask_token_id, special, drawable, opens, closes)

    def begins_word(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[N] whether a word begins at each token of a text [N]; the first one begins one."""
        begins = np.ones(len(ids), dtype=np.bool_)
        begins[1:] = BEGINS.take(self.closes.take(ids[:-1]) * CLASSES + self.opens.take(ids[1:]))
        return begins
