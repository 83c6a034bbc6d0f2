"""The shuffled documents of a window, tokenized as far as its groups needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.documents.document import Documents
from stream_pretrain.data.randomness import keyed_generator
from stream_pretrain.data.rows.pieces import PIECE_CHARACTERS


class _Held(NamedTuple):
    """A document of a window that some of the held tokens are of."""

    rank: int
    entry: int
    """Its first piece among those held."""
    tokens: int


class TokenizedWindow:
    """The shuffled documents of a window, tokenized as far as its groups needed."""

    def __init__(self, documents: Documents, key: Sequence[int], piece_edges: Callable[[str], list[int]]) -> None:
        self.order: list[int] = keyed_generator(*key).permutation(len(documents.texts)).tolist()
        self.documents = documents
        self.piece_edges = piece_edges
        self.ids = np.empty(0, dtype=np.int32)
        # One entry a tokenized piece, from the piece the group begins with: its document's rank, its index there, tokens.
        self.ranks: list[int] = []
        self.pieces: list[int] = []
        self.counts: list[int] = []
        self.next_rank = 0  # the first piece that is not tokenized yet
        self.next_piece = 0
        self.edges: tuple[int, list[int]] | None = None

    def begin_group(self, rank: int, piece: int) -> None:
        """Forget the tokens before a piece; begin to tokenize there if none are held."""
        passed = 0
        while passed < len(self.ranks) and (self.ranks[passed], self.pieces[passed]) < (rank, piece):
            passed += 1
        self.ids = self.ids[sum(self.counts[:passed]) :]
        del self.ranks[:passed], self.pieces[:passed], self.counts[:passed]
        if not self.ranks:
            self.next_rank, self.next_piece = rank, piece

    def has(self, rank: int, piece: int) -> bool:
        """Whether a group can begin with this piece of this document."""
        if rank >= len(self.order):
            return rank == piece == 0
        text = self.documents.texts[self.order[rank]]
        return piece == 0 or (len(text) > PIECE_CHARACTERS and piece < len(self.piece_edges(text)) - 1)

    @property
    def has_more(self) -> bool:
        return self.next_rank < len(self.order)

    @property
    def complete_documents(self) -> int:
        return len(self._with_tokens() - {self.next_rank})

    def positions(self, framing: int) -> int:
        """Positions the held tokens need at the least."""
        return len(self.ids) + framing * len(self._with_tokens())

    def _with_tokens(self) -> set[int]:
        """Ranks of the held documents that the tokenizer makes something of."""
        return {rank for rank, count in zip(self.ranks, self.counts, strict=True) if count}

    def next_texts(self, characters: int) -> list[str]:
        """Pieces that were not tokenized yet, of at least so many characters in all."""
        texts = []
        while characters > 0 and self.has_more:
            text = self.documents.texts[self.order[self.next_rank]]
            self.ranks.append(self.next_rank)
            self.pieces.append(self.next_piece)
            if len(text) <= PIECE_CHARACTERS:
                self.next_rank += 1
            else:
                edges = self._edges(text)
                text = text[edges[self.next_piece] : edges[self.next_piece + 1]]
                self.next_piece += 1
                if self.next_piece == len(edges) - 1:
                    self.next_rank, self.next_piece = self.next_rank + 1, 0
            texts.append(text)
            characters -= len(text)
        return texts

    def _edges(self, text: str) -> list[int]:
        if self.edges is None or self.edges[0] != self.next_rank:
            self.edges = self.next_rank, self.piece_edges(text)
        return self.edges[1]

    def append(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], document_end: tuple[int, ...]) -> None:
        """Take the tokens of the pieces that `next_texts` gave last."""
        first, counts = len(self.counts), lengths.tolist()
        self.counts += counts
        if document_end:
            ends = np.cumsum(lengths)
            last = (i for i in range(len(counts)) if self._next_of(first + i) != self.ranks[first + i])
            ended = [i for i in last if self._has_token(first + i)]
            ids = np.insert(ids, np.repeat(ends[ended], len(document_end)), np.tile(document_end, len(ended)))
            for i in ended:
                self.counts[first + i] += len(document_end)
        self.ids = np.concatenate([self.ids, ids])

    def _has_token(self, entry: int) -> bool:
        """Whether a document, up to this piece, has a token."""
        while not self.counts[entry]:
            if entry == 0:
                return self.pieces[0] > 0  # a group only begins within a document that the one before had tokens of
            if self.pieces[entry] == 0:
                return False
            entry -= 1
        return True

    def _next_of(self, index: int) -> int:
        """Rank of the piece behind an entry."""
        return self.ranks[index + 1] if index + 1 < len(self.ranks) else self.next_rank

    def held(self) -> list[_Held]:
        """The documents that have tokens among `ids`, in their order."""
        found: list[_Held] = []
        for entry, (rank, count) in enumerate(zip(self.ranks, self.counts, strict=True)):
            if found and found[-1].rank == rank:
                found[-1] = found[-1]._replace(tokens=found[-1].tokens + count)
            else:
                found.append(_Held(rank, entry, count))
        return [document for document in found if document.tokens]

    def offsets_of(self, held: Sequence[_Held]) -> NDArray[np.int64]:
        """int64 [documents] where each stands in its shard."""
        return np.array([self.documents.offsets[self.order[document.rank]] for document in held], dtype=np.int64)

    def position_of(self, held: Sequence[_Held], document: int, token: int) -> tuple[int, int, int] | None:
        """Rank, piece and token in the piece, of a token of a held document; None behind the last of the window."""
        if document == len(held):
            assert not self.has_more
            return None
        rank, entry, _ = held[document]
        if token == 0:  # with the pieces in front that the tokenizer makes nothing of: there the document begins
            return rank, self.pieces[entry], 0
        while token >= self.counts[entry]:
            token -= self.counts[entry]
            entry += 1
        return rank, self.pieces[entry], token

    def documents_without_tokens(self, held: Sequence[_Held], rank: int, after: tuple[int, int, int] | None) -> list[int]:
        """Offsets of the documents from a rank up to `after` that the tokenizer makes nothing of."""
        with_tokens = {document.rank for document in held}
        stop = len(self.order) if after is None else after[0]
        return [self.documents.offsets[self.order[r]] for r in range(rank, stop) if r not in with_tokens]
