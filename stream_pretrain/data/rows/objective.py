"""What a model is trained to predict: how documents are framed for it, and which labels rows have.

An objective is a frozen dataclass in a module of its own, with
    name               as in `--objective.name`
    causal             whether a position may see only those before it
    framed(encoder)    the encoder with the special tokens that frame segments and end documents
    label_slots(L)     P: labels that a row of L positions can have at most, at any step of the run
    shortest_row(F)    positions of the shortest row that can have a label, of which F are special tokens of its segment
    rate(step)         share of positions with a label at a step; rows labelled at a rate serve every step that has it
    evaluation_rate    the one for the evaluation set, at every step
    label(rows, rate, key)   [R, L] rows and their labels [R, P], a pure function of its arguments
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
    """The objective of a run. Raises: ModelError where the tokenizer lacks what it needs."""
    objectives: dict[str, type[Objective]] = {objective.name: objective for objective in get_args(Objective)}
    return objectives[config.objective.name].of(config, tokenizer)
