"""The model that runs are verified with: cut to two layers, and the same without dropout."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.loading import ATTENTION_DROPOUTS, sized_model
from stream_pretrain.model.tokenizer import load_tokenizer

LAYERS = 2


@dataclass(frozen=True)
class ReducedModel:
    """The options of a model."""

    options: ModelConfig
    without_dropout: ModelConfig | None
    """None where dropout cannot be turned off; the same options where there is none."""
    description: str
    settings: PreTrainedConfig
    """Which name its class."""
    parameters: int


def reduced(model: ModelConfig, *, causal: bool, full: bool, folder: Path) -> ReducedModel:
    """The model of a run for its verification; what is made of it is written to a folder.

    A model that is cut has new weights: those of the user are not read. Raises: ModelError for one that cannot be cut.
    """
    name = model.path or model.config
    assert name is not None, "validated: a model or a configuration is given"
    settings, parameters = sized_model(model, causal)
    tokenizer = model.tokenizer or name
    if model.tokenizer is None and model.revision is not None:
        load_tokenizer(model).save_pretrained(folder / "tokenizer")
        tokenizer = str(folder / "tokenizer")
    has_own_code = getattr(settings, "auto_map", None) is not None
    options, init, description = model, model.init_from or model.path, f"all of {name}"
    can_be_written = not has_own_code and model.revision is None
    if not full:
        if has_own_code:
            raise _cannot_be_cut(name, "it brings code of its own (auto_map)")
        layers = settings.num_hidden_layers if _has_layers(settings) else None
        settings, init, can_be_written = _cut(name, settings), None, True
        config = _written(settings, folder / "model")
        options = replace(model, path=None, config=config, tokenizer=tokenizer, init_from=None, revision=None)
        description = f"{settings.num_hidden_layers} of {layers} layers of {name}"
        if settings.num_hidden_layers != layers:
            parameters = _parameters_of_cut(name, options, causal, parameters)
    without: ModelConfig | None = options
    if dropouts := _dropouts(settings):
        without = None
        if can_be_written:
            changed = copy.deepcopy(settings)
            for dropout in dropouts:
                setattr(changed, dropout, 0.0)
            config = _written(changed, folder / "model-without-dropout")
            without = replace(options, path=None, config=config, tokenizer=tokenizer, init_from=init, revision=None)
    return ReducedModel(options, without, description, settings, parameters)


def _has_layers(settings: PreTrainedConfig) -> bool:
    return isinstance(getattr(settings, "num_hidden_layers", None), int) and not getattr(settings, "is_encoder_decoder", False)


def _cut(name: str, settings: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with fewer layers, where it has more. Raises: ModelError."""
    if not _has_layers(settings):
        raise _cannot_be_cut(name, f"its configuration ({settings.model_type}) has no single number of layers")
    layers = settings.num_hidden_layers
    if layers <= LAYERS:
        return settings
    cut = copy.deepcopy(settings)
    try:
        cut.num_hidden_layers = LAYERS
        for option, value in vars(cut).items():
            if isinstance(value, list | tuple) and len(value) == layers:  # such as the kind of attention of each layer
                setattr(cut, option, value[:LAYERS])
    except Exception as error:  # whatever a family makes of a number of layers that it does not expect
        raise _cannot_be_cut(name, _first_line(error)) from error
    return cut


def _parameters_of_cut(name: str, options: ModelConfig, causal: bool, uncut: int) -> int:
    """Parameters of the cut model, which has fewer than the uncut one. Raises: ModelError."""
    try:
        settings, parameters = sized_model(options, causal)
    except Exception as error:  # likewise
        raise _cannot_be_cut(name, _first_line(error)) from error
    shares_weights = hasattr(settings, "num_hidden_groups")  # ALBERT
    if parameters >= uncut and not shares_weights:
        raise _cannot_be_cut(name, f"a {settings.model_type} has as many weights with {LAYERS} layers as with all")
    return parameters


def _cannot_be_cut(name: str, why: str) -> ModelError:
    return ModelError(f"{name} cannot be cut to {LAYERS} layers: {why}; give --verify.full-model, or a smaller --model")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _dropouts(settings: PreTrainedConfig) -> list[str]:
    """Settings that drop something; attention has no dropout while training."""
    return [
        name
        for name, value in vars(settings).items()
        if "drop" in name and name not in ATTENTION_DROPOUTS and isinstance(value, float) and value > 0
    ]


def _written(settings: PreTrainedConfig, folder: Path) -> str:
    folder.mkdir()
    settings.to_json_file(folder / "config.json")
    return str(folder)
