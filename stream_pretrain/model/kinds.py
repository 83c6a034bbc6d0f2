"""The kind of a model by its configuration, before its weights are read: masked, causal, or no language model."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForPreTraining

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.hub import first_line, refuse_known, refuse_no_model

UNREADABLE = (OSError, ValueError, TypeError, KeyError, ImportError, StrictDataclassFieldValidationError)
"""What transformers raises for files of a model or a tokenizer that it cannot use."""
AUTO_CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}


def read_config(name: str, model: ModelConfig, local_files_only: bool) -> PreTrainedConfig:
    """The configuration of a language model. Raises: ModelError."""
    refuse_no_model(name)
    try:
        settings = AutoConfig.from_pretrained(
            name, revision=model.revision, local_files_only=local_files_only, trust_remote_code=model.trust_remote_code
        )
    except UNREADABLE as error:
        refuse_known(name, model.revision, error)
        raise ModelError(f"no model configuration in {name}: {first_line(error)}") from error
    if not hasattr(settings, "vocab_size"):
        raise ModelError(f"{name} is not a language model ({settings.model_type}): choose another model")
    has_own_code = getattr(settings, "auto_map", None) is not None
    if not has_own_code and not any(_has_class(settings, kind) for kind in AUTO_CLASSES):
        raise ModelError(f"{name} ({settings.model_type}) is no masked and no causal language model: choose another model")
    return settings


def kind_to_load(settings: PreTrainedConfig, causal: bool) -> str:
    """The kind of class to load: masked also for next-token training, where an encoder has no causal class."""
    only_masked = _has_class(settings, "masked") and not _has_class(settings, "causal")
    return "causal" if causal and not only_masked else "masked"


def is_only_causal(settings: PreTrainedConfig) -> bool:
    """Whether there is a model for next tokens with this configuration, and none for masks."""
    own = getattr(settings, "auto_map", None)
    if own is not None:
        return "AutoModelForCausalLM" in own and "AutoModelForMaskedLM" not in own
    return _has_class(settings, "causal") and not _has_class(settings, "masked")


def is_causal(settings: PreTrainedConfig) -> bool:
    """Whether a model was trained on next tokens, an encoder too: its configuration says `is_decoder`."""
    return is_only_causal(settings) or bool(getattr(settings, "is_decoder", False))


def refuse_other_head(name: str, settings: PreTrainedConfig) -> None:
    """Refuse a model that was trained for something else, such as classes of texts. Raises: ModelError.

    Its weights do not show it: a head that is tied to the embedding always exists.
    """
    if settings.is_encoder_decoder:
        raise ModelError(
            f"{name} is an encoder-decoder ({settings.model_type}), no masked and no causal language model: "
            "choose another model"
        )
    architecture = next(iter(settings.architectures or ()), None)
    if architecture is None or getattr(settings, "auto_map", None) is not None:
        return
    family = type(settings)
    classes = (AutoModel, AutoModelForPreTraining, *AUTO_CLASSES.values())
    found = [auto._model_mapping[family] for auto in classes if family in auto._model_mapping]
    known = {one.__name__ for members in found for one in (members if isinstance(members, tuple) else (members,))}
    if architecture not in known:
        raise ModelError(f"{name} is a {architecture}, which is no language model: choose another model")


def _has_class(settings: PreTrainedConfig, kind: str) -> bool:
    return type(settings) in AUTO_CLASSES[kind]._model_mapping
