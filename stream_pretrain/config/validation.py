"""Validates options, alone and together."""

from __future__ import annotations

import dataclasses
import math
import re
import string
from collections.abc import Collection
from typing import Any

from stream_pretrain.config.corpus_options import DataConfig
from stream_pretrain.config.option_types import refuse_other_types
from stream_pretrain.config.option_values import sources_of
from stream_pretrain.config.options import GROUPS, Config, EvalConfig, RunConfig, TrainConfig
from stream_pretrain.config.secrets import storage_options
from stream_pretrain.errors import ConfigError
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.redaction import says_hidden
from stream_pretrain.urls import HIDDEN, redacted_url, user_and_query

NEEDED = ("data.dataset", "model.path", "train.max_steps")
"""What a run cannot do without, or without the option that `required_or` names."""

MOST_LANES = 65_536
"""Each lane has a file or connection open, and `commands.train` lets a process open as many."""


def validate(config: Config, needed: Collection[str] = NEEDED) -> None:
    """Refuse options that cannot run, before anything is read. needed: those of `NEEDED`. Raises: ConfigError."""
    groups = {f"--{group}.": getattr(config, group) for group in GROUPS}
    for where, options in groups.items():
        refuse_other_types(options, where)
    _validate_corpus(config.data, needed)
    _validate_model_and_end(config, needed)
    for where, options in groups.items():
        refuse_unusable_values(options, where)
    if config.data.lanes != "auto" and config.data.lanes > MOST_LANES:
        raise ConfigError(f"--lanes must be at most {MOST_LANES:,}, not {config.data.lanes:,}: leave it out to have it chosen")
    _validate_objective(config)
    _validate_training(config.train)
    _validate_evaluation(config)
    _validate_run(config.run, config.eval)
    for source in sources_of(config.data):
        _validate_source(source)


def _validate_corpus(data: DataConfig, needed: Collection[str]) -> None:
    given = [source.dataset for source in data.sources] if data.dataset is None else [data.dataset]
    if not all(map(str.strip, given)) or (not given and "data.dataset" in needed):
        raise ConfigError("--dataset is missing: give a Hub id, folder, glob or URL")
    if data.dataset is not None and data.sources:
        raise ConfigError("give either --dataset or --data.sources, not both")
    _validate_mixture(data)


def _validate_model_and_end(config: Config, needed: Collection[str]) -> None:
    model, train = config.model, config.train
    if model.init_from is not None and model.path is None and model.config is None and "model.path" in needed:
        raise ConfigError(
            "--init-from takes the weights alone: give that folder as --model instead, or --model.config and "
            "--model.tokenizer with it"
        )
    if (model.path is None) == (model.config is None) and (model.path is not None or "model.path" in needed):
        raise ConfigError("give either --model (continue from it) or --model.config with --model.tokenizer (from scratch)")
    if model.config is not None and model.tokenizer is None:
        raise ConfigError("--model.config trains from scratch and needs --model.tokenizer")
    if train.max_steps is None and train.max_epochs is None and "train.max_steps" in needed:
        raise ConfigError("give --max-steps or --max-epochs: the run needs an end")


def _validate_objective(config: Config) -> None:
    objective = config.objective
    if objective.name == "mlm" and not (0 < objective.mask_rate < 1 and objective.final_mask_rate != 1):
        raise ConfigError(f"--objective.mask-rate must be between 0 and 1, both excluded, not {objective.mask_rate}")
    if objective.mask_share + objective.random_share > 1:
        raise ConfigError("--objective.mask-share and --objective.random-share add up to more than 1")
    if objective.final_mask_rate is not None and config.train.max_steps is None:
        raise ConfigError("--objective.final-mask-rate is reached at the last step and needs --max-steps")


def _validate_training(train: TrainConfig) -> None:
    if train.beta1 >= 1 or train.beta2 >= 1:
        raise ConfigError(f"--train.beta1 {train.beta1} and --train.beta2 {train.beta2} must be below 1")
    if train.learning_rate != "auto":
        refuse_final_rate_above(train.learning_rate, train)
    if train.final_learning_rate != 0 and train.schedule == "constant":
        raise ConfigError("--train.final-learning-rate needs a --train.schedule that decays: wsd, cosine or linear")
    steps_to_skip(train.skip_steps)


def _validate_evaluation(config: Config) -> None:
    evaluation = config.eval
    has_documents = evaluation.dataset is not None or evaluation.split is not None or bool(evaluation.sets)
    if not evaluation.every and has_documents:
        options = "--eval.sets needs" if evaluation.sets else "--eval.dataset and --eval.split need"
        raise ConfigError(f"{options} --eval-every")
    if evaluation.split is not None and evaluation.dataset is None and config.data.sources:
        raise ConfigError("--eval.split names a split of --dataset, but the corpus is a mixture: give --eval.dataset")
    if evaluation.every and not has_documents and not any(source.heldout_fraction for source in sources_of(config.data)):
        raise ConfigError("--eval-every needs documents: give --data.heldout-fraction, --eval.split or --eval.dataset")
    _refuse_hidden("--eval.dataset", evaluation.dataset)
    _validate_evaluation_sets(config)


def _validate_evaluation_sets(config: Config) -> None:
    sets = config.eval.sets
    if sets and (config.eval.dataset is not None or config.eval.split is not None):
        raise ConfigError("give either --eval.sets or --eval.dataset and --eval.split, not both")
    _refuse_names("--eval.sets", [one.name for one in sets])
    for one in sets:
        where = f"--eval.sets: {one.name}:"
        refuse_unusable_values(one, f"{where} ")
        _refuse_hidden(f"{where} dataset", one.dataset)
        if one.dataset is None and one.split is None:
            raise ConfigError(f"{where} give a dataset, a split of the corpus, or both")
        if one.dataset is None and config.data.sources:
            raise ConfigError(f"{where} split names one of --dataset, but the corpus is a mixture: give a dataset")
    if sets and not any(one.weight for one in sets):
        raise ConfigError("--eval.sets: no set has a weight")
    if not math.isfinite(sum(one.weight for one in sets)):
        raise ConfigError("--eval.sets: the sum of the weights must be finite: give smaller ones")


def _validate_run(run: RunConfig, evaluation: EvalConfig) -> None:
    if run.keep_best and not evaluation.every:
        raise ConfigError("--run.keep-best keeps the checkpoint of the best evaluation and needs --eval-every")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", run.output_dir or ""):
        raise ConfigError(f"--output-dir {run.output_dir} is a URL: give a folder, for example of a mounted bucket")


def _refuse_names(option: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"{option}: the name {name!r} must be unique, of letters, digits, `.`, `-` and `_`")


def steps_to_skip(words: str | None) -> range | None:
    """The steps A:B of --train.skip-steps, both included. Raises: ConfigError."""
    if words is None:
        return None
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", words)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--train.skip-steps {words}: give A:B, such as 900:1000, both included")
    return range(int(match[1]), int(match[2]) + 1)


def refuse_final_rate_above(learning_rate: float, train: TrainConfig) -> None:
    """Refuse a learning rate that rises where it should decay. Raises: ConfigError."""
    if train.final_learning_rate > learning_rate:
        chosen = f"{learning_rate} (auto)" if train.learning_rate == "auto" else f"{learning_rate}"
        raise ConfigError(
            f"--train.final-learning-rate {train.final_learning_rate} must not be above --train.learning-rate {chosen}"
        )


def refuse_unusable_values(options: Any, where: str) -> None:
    """Refuse numbers out of bounds, text that is blank, and paths that are not UTF-8. Raises: ConfigError."""
    for option in dataclasses.fields(options):
        value, bounds = getattr(options, option.name), option.metadata.get("bounds")
        name = where + (option.name.replace("_", "-") if where.endswith(".") else option.name)
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{name} is empty: give a value, or leave the option out")
        if isinstance(value, str) and escaped(value) != value:
            if option.metadata.get("secret") == "keys" and not value.startswith("@"):
                raise ConfigError(f"{name} is not UTF-8 text")
            if option.metadata.get("is_path"):
                raise ConfigError(f"{name} {escaped(value)} is not UTF-8, which libraries do not open: rename it")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(value, int) and value >= 2**63:  # records, seeds and tensors have 64 bits
            raise ConfigError(f"{name} must be below 2^63")
        if not math.isfinite(value):
            raise ConfigError(f"{name} must be finite, not {value}")
        if bounds == "positive" and value <= 0:
            raise ConfigError(f"{name} must be above 0, not {value}")
        if bounds == "not negative" and value < 0:
            raise ConfigError(f"{name} must not be negative, not {value}")
        if bounds == "fraction" and not 0 <= value <= 1:
            raise ConfigError(f"{name} must be between 0 and 1, not {value}")


def _validate_source(data: DataConfig) -> None:
    _refuse_hidden("--dataset", data.dataset)
    if says_hidden(storage_options(data.storage_options)):
        raise ConfigError(f"--data.storage-options has {HIDDEN} in place of a secret: put it back")
    if data.text_template is not None:
        try:
            fields = template_fields(data.text_template)
        except ValueError as error:
            raise ConfigError(f"--data.text-template {data.text_template!r}: {error}") from error
        if not fields:
            raise ConfigError(f"--data.text-template {data.text_template!r} names no field, as {{title}} would")
    if data.heldout_fraction == 1:
        raise ConfigError("--data.heldout-fraction 1 leaves no document to train on: give less")
    if data.max_characters is not None and not data.min_characters <= data.max_characters:
        raise ConfigError(f"--data.max-characters {data.max_characters} is below --data.min-characters {data.min_characters}")


def _refuse_hidden(option: str, url: str | None) -> None:
    """Refuse a URL copied from a record, which has `…` for secrets."""
    if url is not None and any(HIDDEN in part for part in user_and_query(url)):
        raise ConfigError(f"{option} {redacted_url(url)} has {HIDDEN} in place of a secret: put it back")


def template_fields(template: str) -> list[str]:
    """The fields in a text template. Raises: ValueError."""
    parts = list(string.Formatter().parse(template))
    for _, field_name, specification, conversion in parts:
        if field_name == "" or specification or conversion or re.search(r"[\[\]]", field_name or ""):
            raise ValueError("a field is its name in braces, {title}, and nothing else; write {{ and }} for braces")
    return list(dict.fromkeys(field_name for _, field_name, _, _ in parts if field_name is not None))


def _validate_mixture(data: DataConfig) -> None:
    names = [source.name for source in data.sources]
    _refuse_names("--data.sources", names)
    for source in data.sources:
        refuse_unusable_values(source, f"--data.sources: {source.name}: ")
    current = {source.name: source.weight for source in data.sources}
    if current and not any(current.values()):
        raise ConfigError("--data.sources: no source has a weight")
    last = 0
    for change in data.weight_schedule:
        where = f"--data.weight-schedule: from_step {change.from_step}:"
        if change.from_step <= last:
            raise ConfigError(f"{where} must be above {last}")
        for name, weight in change.weights.items():
            if name not in current:
                raise ConfigError(f"{where} there is no source {name!r}, only {', '.join(names) or 'none'}")
            if weight < 0 or not math.isfinite(weight):
                raise ConfigError(f"{where} weight of {name} must not be negative, not {weight}")
        current |= change.weights
        if not any(current.values()):
            raise ConfigError(f"{where} no source has a weight")
        last = change.from_step
