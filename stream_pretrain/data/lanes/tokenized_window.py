"""The shuffled documents of a window, tokenized as far as its groups needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_pretrain.data.documents.document import Documents
from stream_pretrain.data.randomness import keyed_generator
from stream_pretrain.data.rows.pieces import PIECE_CHARACTERS


class _Tokenized(NamedTuple):
    """A document of the shuffled window that some of the kept tokens are of."""

    document: int
    entry: int
    """Its first piece among those that are kept."""
    tokens: int


class TokenizedWindow:
    """The shuffled documents of a window, tokenized as far as its groups needed."""

    def __init__(self, documents: Documents, key: Sequence[int], piece_edges: Callable[[str], list[int]]) -> None:
        self.order: list[int] = keyed_generator(*key).permutation(len(documents.texts)).tolist()
        self.documents = documents
        self.characters_to = [0, *itertools.accumulate(len(documents.texts[document]) for document in self.order)]
        self.piece_edges = piece_edges
        self.ids = np.empty(0, dtype=np.int32)
        # One entry a tokenized piece, from the piece the group begins with: its document in the order, its index there, tokens.
        self.entry_documents: list[int] = []
        self.pieces: list[int] = []
        self.counts: list[int] = []
        self.next_document = 0  # the first piece that is not tokenized yet
        self.next_piece = 0
        self.edges: tuple[int, list[int]] | None = None

    def begin_group(self, document: int, piece: int) -> None:
        """Forget the tokens before a piece; begin to tokenize there if none are kept."""
        passed = 0
        while passed < len(self.entry_documents) and (self.entry_documents[passed], self.pieces[passed]) < (document, piece):
            passed += 1
        self.ids = self.ids[sum(self.counts[:passed]) :]
        del self.entry_documents[:passed], self.pieces[:passed], self.counts[:passed]
        if not self.entry_documents:
            self.next_document, self.next_piece = document, piece

    def has(self, document: int, piece: int) -> bool:
        """Whether a group can begin with this piece of this document."""
        if document >= len(self.order):
            return document == piece == 0
        text = self.documents.texts[self.order[document]]
        return piece == 0 or (len(text) > PIECE_CHARACTERS and piece < len(self.piece_edges(text)) - 1)

    @property
    def characters(self) -> int:
        """Of all documents."""
        return self.characters_to[-1]

    def characters_before(self, document: int, piece: int) -> int:
        """Characters before a piece of a document of the order; pieces are as long as they may be."""
        return min(self.characters_to[document] + piece * PIECE_CHARACTERS, self.characters_to[document + 1])

    @property
    def has_more(self) -> bool:
        return self.next_document < len(self.order)

    @property
    def complete_documents(self) -> int:
        return len(self._with_tokens() - {self.next_document})

    def positions(self, framing: int) -> int:
        """Positions the kept tokens need at the least."""
        return len(self.ids) + framing * len(self._with_tokens())

    def _with_tokens(self) -> set[int]:
        """The documents with kept tokens."""
        return {document for document, count in zip(self.entry_documents, self.counts, strict=True) if count}

    def next_texts(self, characters: int) -> list[str]:
        """Pieces that were not tokenized yet, of at least so many characters in all."""
        texts = []
        while characters > 0 and self.has_more:
            text = self.documents.texts[self.order[self.next_document]]
            self.entry_documents.append(self.next_document)
            self.pieces.append(self.next_piece)
            if len(text) <= PIECE_CHARACTERS:
                self.next_document += 1
            else:
                edges = self._edges(text)
                text = text[edges[self.next_piece] : edges[self.next_piece + 1]]
                self.next_piece += 1
                if self.next_piece == len(edges) - 1:
                    self.next_document, self.next_piece = self.next_document + 1, 0
            texts.append(text)
            characters -= len(text)
        return texts

    def _edges(self, text: str) -> list[int]:
        if self.edges is None or self.edges[0] != self.next_document:
            self.edges = self.next_document, self.piece_edges(text)
        return self.edges[1]

    def append(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], document_end: tuple[int, ...]) -> None:
        """Take the tokens of the pieces that `next_texts` gave last."""
        first, counts = len(self.counts), lengths.tolist()
        self.counts += counts
        if document_end:
            ends = np.cumsum(lengths)
            last = (i for i in range(len(counts)) if self._next_of(first + i) != self.entry_documents[first + i])
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
        """Document of the piece behind an entry."""
        return self.entry_documents[index + 1] if index + 1 < len(self.entry_documents) else self.next_document

    def tokenized(self) -> list[_Tokenized]:
        """The documents that have tokens among `ids`, in order."""
        found: list[_Tokenized] = []
        for entry, (document, count) in enumerate(zip(self.entry_documents, self.counts, strict=True)):
            if found and found[-1].document == document:
                found[-1] = found[-1]._replace(tokens=found[-1].tokens + count)
            else:
                found.append(_Tokenized(document, entry, count))
        return [one for one in found if one.tokens]

    def origins_of(self, tokenized: Sequence[_Tokenized]) -> NDArray[np.int64]:
        """int64 [documents, 2] which shard of the unit each is of, and where it stands in that."""
        origins = [self.documents.origin_of(self.order[one.document]) for one in tokenized]
        return np.array(origins, dtype=np.int64).reshape(-1, 2)

    def position_of(self, tokenized: Sequence[_Tokenized], index: int, token: int) -> tuple[int, int, int] | None:
        """Document, piece and token in it, of a token of the document at an index; None behind the last of the window."""
        if index == len(tokenized):
            assert not self.has_more
            return None
        document, entry, _ = tokenized[index]
        if token == 0:  # with the pieces in front that the tokenizer makes nothing of: there the document begins
            return document, self.pieces[entry], 0
        while token >= self.counts[entry]:
            token -= self.counts[entry]
            entry += 1
        return document, self.pieces[entry], token

    def documents_without_tokens(
        self, tokenized: Sequence[_Tokenized], first: int, after: tuple[int, int, int] | None
    ) -> list[tuple[int, int]]:
        """The documents from the first up to `after` that the tokenizer makes nothing of, as `origins_of` has them."""
        with_tokens = {one.document for one in tokenized}
        stop = len(self.order) if after is None else after[0]
        without = [document for document in range(first, stop) if document not in with_tokens]
        return [self.documents.origin_of(self.order[document]) for document in without]
