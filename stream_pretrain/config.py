"""Every option of a run, declared once: the docstring under a field is its `--help`.

Frozen dataclasses of plain values. This module imports nothing heavy, so `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stream_pretrain import earlier
from stream_pretrain.errors import ConfigError
from stream_pretrain.names import escaped
from stream_pretrain.redaction import Secrets, says_hidden
from stream_pretrain.urls import HIDDEN, redacted_url, user_and_query, without_secrets

Auto = Literal["auto"]
TextDocuments = Literal["line", "blank-line", "file"]


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture. What is left out, and can be said of all sources, is as the option of the same name says."""

    name: str
    dataset: str
    weight: float = 1.0
    """Its share of the tokens, relative to the weights of the others."""
    max_epochs: int | None = None
    """The source leaves the mixture once it was read this many times; default: --max-epochs."""
    config: str | None = None
    """Configuration of the dataset, as --data.name."""
    split: str = "train"
    revision: str | None = None
    data_files: str | None = None
    data_dir: str | None = None
    storage_options: str | None = None
    text_field: str | None = None
    text_template: str | None = None
    text_documents: TextDocuments | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    heldout_fraction: float | None = None


@dataclass(frozen=True)
class WeightChange:
    """Other weights from a step on; a source that is not named keeps its own."""

    from_step: int
    weights: dict[str, float]


@dataclass(frozen=True)
class DataConfig:
    """Which documents are read, and how they become rows."""

    dataset: str | None = None
    """Corpus to stream: a Hub id (org/name), a local folder, a file, a glob, a URL, or @FILE with one of these a line."""
    sources: tuple[SourceConfig, ...] = ()
    """Mixture, instead of --dataset: a list of records with name, dataset, weight and, if need be, max_epochs, config, split,
    revision, data_files, data_dir, storage_options, text_field, text_template, text_documents, min_characters,
    max_characters, heldout_fraction. Weights are shares of the tokens."""
    weight_schedule: tuple[WeightChange, ...] = ()
    """Other weights from a step on: a list of records with from_step and weights (name: weight)."""
    name: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split to train on."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; pinned to a commit at the first start."""
    data_files: str | None = None
    """Pattern of files to read inside a Hub dataset or local folder, instead of a split."""
    data_dir: str | None = None
    """Folder to read inside a Hub dataset or local folder."""
    storage_options: str | None = None
    """JSON object handed to fsspec when a shard is opened, for example '{"anon": true}', or @FILE: not recorded."""
    reader: Literal["auto", "datasets"] = "auto"
    """auto: own reader for JSON lines, text and Parquet, `datasets` for the rest; datasets: always `datasets`."""
    text_field: str = "text"
    """Field that holds the text; dots reach into nested objects (doc.body.text) and lists of them, whose texts are joined."""
    text_template: str | None = None
    """Text made of several fields instead of one, for example "{title}\\n\\n{body}"; those without text are left empty."""
    text_documents: TextDocuments = "line"
    """What a document of a text file (.txt, .text) is: a line; the lines between blank lines; the whole file."""
    min_characters: int = 0
    """Shorter documents are left out, and counted; from 1 on, those that are blank, null or lack the field are too."""
    max_characters: int | None = None
    """Longer documents are left out, and counted."""
    special_tokens: Literal["text", "keep"] = "text"
    """What special tokens of your own, such as [DRUG], are in a document: text, or (keep) the tokens. Those that the model has
    a use for, such as [MASK], [SEP] and <pad>, are always text."""
    drop_duplicates: bool = False
    """Leave out documents whose text another of the same window has, and count them."""
    sequence_length: int = 512
    """Tokens of a row."""
    packing: Literal["best_fit", "concat", "none"] = "best_fit"
    """best_fit: several documents a row, chosen to fill it; concat: documents in reading order; none: one a row, padded."""
    lanes: int | Auto = "auto"
    """Fixed sub-streams of the corpus, dealt to ranks and workers; divides the global batch, never changes in a run."""
    workers: int = 1
    """Data worker processes per rank; 0 reads inside the training process. Does not change the rows of a step."""
    window_bytes: int | Auto = "auto"
    """Uncompressed bytes that are shuffled as a unit; the window of a source of a mixture is its share of them."""
    heldout_fraction: float = 0.0
    """Share of the documents, chosen by a hash of their text, that never trains and serves evaluation."""
    max_line_bytes: int = 64 * 1024 * 1024
    """A longer line, or other document of a text file, is skipped and counted."""
    max_bad_fraction: float = 0.01
    """The run ends when more than this share of the documents that were read had to be skipped (judged after 1,000)."""
    on_bad_shard: Literal["error", "skip"] = "error"
    """What a damaged shard does: end the run, or skip the window it is met in and the rest of that lane's stripe."""
    retry_deadline: float = 1800.0
    """Seconds a failing connection is retried before the run ends."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and how it is computed."""

    path: str | None = None
    """Model to continue from: a Hub id or a local folder. Leave out and give --model.config for a model from scratch."""
    config: str | None = None
    """Train from scratch: a config.json (or a folder or Hub id that has one). Needs --model.tokenizer."""
    tokenizer: str | None = None
    """Tokenizer, where it is not the model's own: a Hub id or a local folder."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    init_from: str | None = None
    """Take the weights (and nothing else) from this checkpoint or model folder; the run itself starts at step 0."""
    resize_embeddings: bool = False
    """Allow the embedding to grow to the tokenizer's size, padded to a multiple of 64."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Use torch.compile on the model."""
    trust_remote_code: bool = False
    """Run the Python code that the folder of the model or tokenizer brings (auto_map). On the command line only."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted."""

    name: Literal["mlm", "clm"] = "mlm"
    """mlm: masked language modelling; clm: next-token prediction."""
    mask_rate: float = 0.3
    """Share of a row's maskable positions that get a label (mlm)."""
    final_mask_rate: float | None = None
    """Mask rate reached linearly at the last step; none keeps the rate constant."""
    selection: Literal["token", "whole_word", "span"] = "token"
    """Which positions are chosen together: single tokens, all tokens of a word, or geometric spans (SpanBERT)."""
    mask_share: float = 0.8
    """Share of the labelled positions replaced by the mask token."""
    random_share: float = 0.1
    """Share of the labelled positions replaced by a random token; the remainder is kept as it is."""


@dataclass(frozen=True)
class TrainConfig:
    """The steps: how many, how large, how fast."""

    max_steps: int | None = None
    """Optimizer steps of the run."""
    max_epochs: int | None = None
    """Read every document this many times; the run ends there or at --max-steps, whichever comes first."""
    global_batch_size: int = 256
    """Rows of one optimizer step, over all ranks."""
    micro_batch_size: int = 32
    """Rows that go through the model at once on one device; changes memory and speed, not the result."""
    seed: int = 0
    """Decides order, masks, initial weights and dropout."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Shape after warm-up; wsd holds the peak, then decays by 1 - sqrt over the last --train.decay-fraction of the run."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0. Where they reach into the decay, the lower of the two rates holds."""
    decay_fraction: float = 0.2
    """Share of the run that decays (wsd)."""
    final_learning_rate: float = 0.0
    """Learning rate that the decay leads to, reached where the run ends (wsd, cosine, linear)."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.98
    """AdamW: decay of the second moment."""
    epsilon: float = 1e-8
    """AdamW: added to the denominator."""
    weight_decay: float = 0.01
    """AdamW: decoupled weight decay; never on biases and norms."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""
    max_bad_steps: int = 10
    """So many steps in a row may have a non-finite loss or gradient; one more ends the run."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on documents that never train."""

    every: int = 0
    """Steps between evaluations; 0 evaluates never. Needs held-out documents, a split or a dataset."""
    documents: int = 500
    """Documents in the fixed evaluation set."""
    split: str | None = None
    """Split of the corpus that serves as the evaluation set."""
    dataset: str | None = None
    """Other dataset (as --dataset) that serves as the evaluation set."""
    max_read_bytes: int = 1024 * 1024 * 1024
    """Uncompressed bytes read at most while collecting the evaluation set."""


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives, and what it leaves there."""

    output_dir: str | None = None
    """Folder of the run. Default: runs/<dataset>-<model>-<hash of what must not change>; the same command resumes it."""
    resume: str = "auto"
    """auto: go on where OUT stands; no: refuse a used OUT; PATH of a checkpoint: start a new run from it."""
    save_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = 3
    """Checkpoints kept, newest first."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none for good."""
    log_every: int = 10
    """Steps between lines of metrics."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, offline without."""
    wandb_project: str = "stream_pretrain"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases team or user."""
    wandb_name: str | None = None
    """Name of the run in Weights & Biases; default: the folder's name."""


@dataclass(frozen=True)
class Config:
    """All options of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """Options that are said on the command line or in a file, by dotted name, be it with their default."""


ALIASES = {
    "dataset": "data.dataset",
    "model": "model.path",
    "output-dir": "run.output_dir",
    "max-steps": "train.max_steps",
    "max-epochs": "train.max_epochs",
    "resume": "run.resume",
    "init-from": "model.init_from",
    "seed": "train.seed",
    "global-batch-size": "train.global_batch_size",
    "micro-batch-size": "train.micro_batch_size",
    "sequence-length": "data.sequence_length",
    "lanes": "data.lanes",
    "workers": "data.workers",
    "save-every": "run.save_every",
    "eval-every": "eval.every",
    "log-every": "run.log_every",
}
"""Short names of the options everybody uses: one is an alias of the other."""

# What may change when a run resumes; everything else decides which rows a step sees or what is learnt from them.
CHANGEABLE = frozenset(
    {
        "data.workers",
        "data.storage_options",
        "data.retry_deadline",
        "data.max_bad_fraction",
        "data.on_bad_shard",
        "data.lanes",  # "auto" depends on the machine; the lanes themselves are pinned in corpus.json
        "data.window_bytes",  # likewise
        "model.gradient_checkpointing",
        "model.compile",
        "model.trust_remote_code",
        "objective.final_mask_rate",
    }
)


GROUPS: dict[str, Any] = {
    group.name: group.default_factory
    for group in dataclasses.fields(Config)
    if group.default_factory is not dataclasses.MISSING
}
"""The dataclass of each group of options."""


def flatten(config: Config) -> dict[str, Any]:
    """All options as one flat dictionary with dotted names, records as plain dictionaries, names that are not UTF-8 escaped."""
    return {
        f"{group}.{option.name}": _plain(getattr(getattr(config, group), option.name))
        for group in GROUPS
        for option in dataclasses.fields(getattr(config, group))
    }


def _plain(value: Any) -> Any:
    match value:
        case tuple():
            return [{key: _plain(inner) for key, inner in dataclasses.asdict(record).items()} for record in value]
        case str():
            return escaped(value)
        case _:
            return value


def sources_of(data: DataConfig) -> tuple[DataConfig, ...]:
    """The options of each source, as if it were the only dataset."""
    own = {"name", "weight", "max_epochs", "config"}
    return tuple(
        dataclasses.replace(
            data,
            sources=(),
            weight_schedule=(),
            name=source.config,
            **{
                option.name: value
                for option in dataclasses.fields(source)
                if option.name not in own and (value := getattr(source, option.name)) is not None
            },
        )
        for source in data.sources
    ) or (data,)


def fixed_options(config: Config) -> dict[str, Any]:
    """The options that must not change in a run (seed, batch, objective, corpus...), by dotted name."""
    whole_groups_that_may_change = ("run.", "eval.")
    fixed_in_train = ("train.seed", "train.global_batch_size")
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in CHANGEABLE
        and not name.startswith(whole_groups_that_may_change)
        and (not name.startswith("train.") or name in fixed_in_train)
    }


def storage_options(given: str | None) -> dict[str, Any]:
    """Storage options as they were given: JSON, or @FILE with that in it. Raises: ConfigError for what is no object."""
    option, text = "--data.storage-options", given or "{}"
    if text.startswith("@"):
        option = f"{option} {text}"
        try:
            text = Path(text[1:]).read_text("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{option}: the file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{option}: the file is not UTF-8 text") from error
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"{option} must be a JSON object")
    return parsed


def secrets_of(config: Config, environment: Mapping[str, str]) -> Secrets:
    """What must not be shown of the options and of the variables of the environment."""
    sources = sources_of(config.data)
    urls = [source.dataset for source in sources] + [config.eval.dataset]
    options = [storage_options(source.storage_options) for source in sources]
    return Secrets.of([url for url in urls if url is not None], options, environment)


def shown_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options by dotted name, without signatures and keys."""
    shown = {name: value for name, value in options.items() if name != "data.storage_options"}
    for name in ("data.dataset", "eval.dataset"):
        if shown.get(name) is not None:
            shown[name] = without_secrets(shown[name])
    records = shown["data.sources"]
    shown["data.sources"] = [{**r, "dataset": without_secrets(r["dataset"]), "storage_options": None} for r in records]
    return shown


def without_places(fixed: dict[str, Any]) -> dict[str, Any]:
    """Fixed options but for where the corpus lies: one that was moved is known again by its shards.

    What a source does not say is left out too: a run that began before there was such a key said nothing either.
    """
    records = fixed.get("data.sources", [])
    records = [{k: v for k, v in record.items() if k not in _PLACES and v is not None} for record in records]
    return {**{name: value for name, value in fixed.items() if name != "data.dataset"}, "data.sources": records}


_PLACES = ("dataset", "storage_options")


def run_directory(config: Config) -> Path:
    """OUT: as given, else runs/<dataset>-<model>-<hash of the options that must not change and are not as by default>.

    Signatures and keys are left out of it: the same command with new ones goes on with its run. So does it with a run that
    an earlier version has named.
    """
    if config.run.output_dir is not None:
        return Path(config.run.output_dir)
    options = _named_by(config)
    model = config.model.path or config.model.config or "model"
    corpus = options["data.dataset"] or "+".join(source.name for source in config.data.sources)
    words = [re.sub(r"[^A-Za-z0-9._+]+", "-", Path(part).name).strip("-")[:_LONGEST_WORD] for part in (corpus, model)]

    def named(hashed: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / "-".join([*(word for word in words if word), digest])

    changed = _unlike(options, defaults(config))
    named_now = named(changed)
    before = {
        name: earlier.with_keys_of_then(name, options[name]) if name in changed else default
        for name, default in earlier.OPTIONS.items()
    }
    # What has an option of today that is not as by default cannot have been begun by an earlier version.
    is_of_before = all(
        name in earlier.OPTIONS and earlier.with_keys_of_then(name, value) == value for name, value in changed.items()
    )
    return named(before) if is_of_before and named(before).exists() and not named_now.exists() else named_now


def defaults(config: Config) -> dict[str, Any]:
    """The value of every option where it is not given."""
    groups: dict[str, Any] = {group: type(getattr(config, group))() for group in GROUPS}
    return flatten(dataclasses.replace(config, **groups))


def _named_by(config: Config) -> dict[str, Any]:
    """The options that the name of a run goes by, without secrets."""
    options = shown_options(fixed_options(config))
    return {**options, "data.sources": [{**record, "storage_options": None} for record in options["data.sources"]]}


def _unlike(options: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The options that are not as by default; of a record too."""
    records = {"data.sources": SourceConfig, "data.weight_schedule": WeightChange}

    def given(name: str, value: Any) -> Any:
        if name not in records:
            return value
        usual = {field.name: field.default for field in dataclasses.fields(records[name])}
        return [{key: inner for key, inner in record.items() if inner != usual.get(key)} for record in value]

    return {name: given(name, value) for name, value in options.items() if value != default[name]}


_LONGEST_WORD = 100  # a name on the Hub has at most 96 characters, that of a folder 255


def validate(config: Config) -> None:
    """Refuse, before anything is read, what cannot run. Raises ConfigError with the option and what to do."""

    def refuse_unless(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    data, model, objective, train = config.data, config.model, config.objective, config.train
    given = [source.dataset for source in data.sources] if data.dataset is None else [data.dataset]
    refuse_unless(bool(given) and all(map(str.strip, given)), "--dataset is missing: give a Hub id, folder, glob or URL")
    refuse_unless(data.dataset is None or not data.sources, "give either --dataset or --data.sources, not both")
    _validate_mixture(data)
    refuse_unless(
        (model.path is None) != (model.config is None),
        "give either --model (continue from it) or --model.config with --model.tokenizer (from scratch)",
    )
    refuse_unless(
        model.config is None or model.tokenizer is not None,
        "--model.config trains from scratch and needs --model.tokenizer",
    )
    refuse_unless(
        train.max_steps is not None or train.max_epochs is not None, "give --max-steps or --max-epochs: the run needs an end"
    )
    for name, value in flatten(config).items():
        option = "--" + name.replace("_", "-")
        refuse_unless(not isinstance(value, float) or math.isfinite(value), f"{option} must be finite, not {value}")
        if name in _POSITIVE and value not in (None, "auto"):
            refuse_unless(value > 0, f"{option} must be above 0, not {value}")
        if name in _NOT_NEGATIVE:
            refuse_unless(value >= 0, f"{option} must not be negative, not {value}")
        if name in _FRACTIONS and value is not None:
            refuse_unless(0 <= value <= 1, f"{option} must be between 0 and 1, not {value}")
    refuse_unless(
        objective.name != "mlm" or (0 < objective.mask_rate < 1 and objective.final_mask_rate != 1),
        f"--objective.mask-rate must be between 0 and 1, both excluded, not {objective.mask_rate}",
    )
    refuse_unless(
        objective.mask_share + objective.random_share <= 1,
        "--objective.mask-share and --objective.random-share add up to more than 1",
    )
    refuse_unless(
        data.lanes == "auto" or train.global_batch_size % data.lanes == 0,
        f"--lanes {data.lanes} must divide --global-batch-size {train.global_batch_size}",
    )
    refuse_unless(
        objective.final_mask_rate is None or train.max_steps is not None,
        "--objective.final-mask-rate is reached at the last step and needs --max-steps",
    )
    refuse_unless(
        train.beta1 < 1 and train.beta2 < 1,
        f"--train.beta1 {train.beta1} and --train.beta2 {train.beta2} must be below 1",
    )
    refuse_unless(
        train.final_learning_rate <= train.learning_rate,
        f"--train.final-learning-rate {train.final_learning_rate} is what the rate decays to: it must not be above "
        f"--train.learning-rate {train.learning_rate}",
    )
    refuse_unless(
        train.final_learning_rate == 0 or train.schedule != "constant",
        "--train.final-learning-rate needs a --train.schedule that decays (wsd, cosine, linear), not constant",
    )
    refuse_unless(
        config.eval.every > 0 or (config.eval.dataset is None and config.eval.split is None),
        "--eval.dataset and --eval.split say what to evaluate on: give --eval-every as well",
    )
    refuse_unless(
        re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", config.run.output_dir or "") is None,
        f"--output-dir {config.run.output_dir} is a URL: give a folder; a bucket has to be mounted",
    )
    _refuse_hidden("--eval.dataset", config.eval.dataset)
    for source in sources_of(data):
        _validate_source(source)


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
    if data.max_characters is not None and not data.min_characters <= data.max_characters:
        raise ConfigError(f"--data.max-characters {data.max_characters} is below --data.min-characters {data.min_characters}")


def _refuse_hidden(option: str, url: str | None) -> None:
    """Refuse what was copied from where secrets are left out."""
    if url is not None and any(HIDDEN in part for part in user_and_query(url)):
        raise ConfigError(f"{option} {redacted_url(url)} has {HIDDEN} in place of a secret: put it back")


def template_fields(template: str) -> list[str]:
    """The fields that a text template names. Raises ValueError for a template that is none."""
    parts = list(string.Formatter().parse(template))
    for _, field_name, specification, conversion in parts:
        if field_name == "" or specification or conversion or re.search(r"[\[\]]", field_name or ""):
            raise ValueError("a field is its name in braces, {title}, and nothing else; write {{ and }} for braces")
    return list(dict.fromkeys(field_name for _, field_name, _, _ in parts if field_name is not None))


def _validate_mixture(data: DataConfig) -> None:
    names = [source.name for source in data.sources]
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"--data.sources: {name!r} must be a name of its own, of letters, digits, `.`, `-` and `_`")
    for source in data.sources:
        where = f"--data.sources: {source.name}:"
        if source.weight < 0 or not math.isfinite(source.weight):
            raise ConfigError(f"{where} weight must not be negative, not {source.weight}")
        if source.max_epochs is not None and source.max_epochs < 1:
            raise ConfigError(f"{where} max_epochs must be above 0, not {source.max_epochs}")
        if source.heldout_fraction is not None and not 0 <= source.heldout_fraction <= 1:
            raise ConfigError(f"{where} heldout_fraction must be between 0 and 1, not {source.heldout_fraction}")
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


_POSITIVE = frozenset(
    {
        "data.sequence_length",
        "data.lanes",
        "data.window_bytes",
        "data.max_line_bytes",
        "data.max_characters",
        "train.max_steps",
        "train.max_epochs",
        "train.global_batch_size",
        "train.micro_batch_size",
        "train.learning_rate",
        "train.epsilon",
        "train.max_grad_norm",
        "eval.documents",
        "eval.max_read_bytes",
        "run.save_every",
        "run.keep_last",
        "run.log_every",
    }
)
_NOT_NEGATIVE = frozenset(
    {
        "data.workers",
        "data.retry_deadline",
        "data.min_characters",
        "train.seed",
        "train.warmup_steps",
        "train.final_learning_rate",
        "train.weight_decay",
        "train.max_bad_steps",
        "eval.every",
        "run.keep_every",
    }
)
_FRACTIONS = frozenset(
    {
        "data.heldout_fraction",
        "data.max_bad_fraction",
        "objective.mask_rate",
        "objective.final_mask_rate",
        "objective.mask_share",
        "objective.random_share",
        "train.decay_fraction",
        "train.beta1",
        "train.beta2",
    }
)
