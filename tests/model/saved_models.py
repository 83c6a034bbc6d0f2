"""Models and tokenizers of tests, saved and loaded."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from stream_pretrain.config import ModelConfig
from stream_pretrain.model.loading import LoadedModel, load_model
from tests.model.families import tiny_model

MLM, CLM = False, True  # whether the objective is causal


def tiny_tokenizer(size: int = 100, mask_token: str | None = "[MASK]") -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(size - 4))]
    words_to_ids = {word: number for number, word in enumerate(words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words_to_ids, unk_token="w0")), pad_token="[PAD]", mask_token=mask_token
    )


def saved(folder: Path, family: str = "bert", **settings: object) -> str:
    tiny_model(family, **settings).save_pretrained(folder)
    return str(folder)


def without(folder: str, *prefixes: str) -> str:
    """The saved model, less the weights whose names begin like this."""
    path = Path(folder) / "model.safetensors"
    kept = {key: tensor for key, tensor in load_file(path).items() if not key.startswith(prefixes)}
    save_file(kept, path, metadata={"format": "pt"})
    return folder


def load(path: str, objective: bool = MLM, sequence_length: int = 24, seed: int = 0, **options: object) -> LoadedModel:
    return load_model(replace(ModelConfig(path=path), **options), objective, tiny_tokenizer(), sequence_length, seed)
