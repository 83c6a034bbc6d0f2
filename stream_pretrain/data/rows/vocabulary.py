"""The properties of a tokenizer that masking needs."""

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
    """The properties of a tokenizer that masking needs, as arrays over its V ids."""

    mask_id: int
    special: NDArray[np.bool_]
    """[V] ids that are never masked."""
    drawable: NDArray[np.int32]
    """Ids for random replacement: those in use except special tokens, even if documents keep these."""
    opens: NDArray[np.uint8]
    """[V] class of the first character of a token (words.py); empty where words are not needed."""
    closes: NDArray[np.uint8]
    """[V] the same for its last character."""

    @classmethod
    def of(
        cls, tokenizer: Any, selection: Literal["token", "whole_word", "span"] = "token", kept: Sequence[int] = ()
    ) -> Vocabulary:
        """From a loaded fast tokenizer; word boundaries only if `selection` needs them.

        kept: special tokens that documents keep. Each is content and a word of its own: masked, but never a replacement.
        Raises: ModelError where the tokenizer has no mask token, or its ids have no word boundaries.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path} has no mask token, which --objective.name mlm needs: "
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
        """[N] whether a word begins at each token of a text [N]; one begins at the first."""
        begins = np.ones(len(ids), dtype=np.bool_)
        begins[1:] = BEGINS.take(self.closes.take(ids[:-1]) * CLASSES + self.opens.take(ids[1:]))
        return begins
