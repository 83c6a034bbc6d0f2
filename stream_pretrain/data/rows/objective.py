"""Objectives: which special tokens frame documents, and which labels rows have.

An objective is a frozen dataclass in its own module, with
    name               as in `--objective.name`
    causal             whether a position may see only those before it
    framed(encoder)    the encoder with the special tokens that frame segments and end documents
    label_slots(L)     P: the most labels that a row of L positions has at any step
    shortest_row(F)    positions of the shortest row with a label, with F special tokens
    rate(step)         share of positions with a label at a step
    draw(rows, key)    the random part of the labels of rows [R, L], once for all rates; `.label(which, rate)` labels [R', P]
                       of them: a pure function of the rows, the key and the rate, whichever are labelled together
    label_evaluation(rows, key)   the labels of rows of the evaluation set: the same in every version
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from stream_pretrain.config import Config
from stream_pretrain.data.rows.clm import Clm
from stream_pretrain.data.rows.mlm import Mlm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Objective = Mlm | Clm


def objective_of(config: Config, tokenizer: PreTrainedTokenizerFast) -> Objective:
    """The objective of a run. Raises: ModelError where the tokenizer does not support it."""
    return objective_named(config.objective.name).of(config, tokenizer)


def objective_named(name: str) -> type[Objective]:
    """The kind of objective that --objective.name names."""
    objectives: dict[str, type[Objective]] = {objective.name: objective for objective in get_args(Objective)}
    return objectives[name]
