"""Every option of a run, declared once: the docstring under a field is its `--help`.

Frozen dataclasses of plain values, without heavy imports, so that `--help` is immediate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stream_pretrain.config.option_field import option
from stream_pretrain.non_utf8_names import escaped
from stream_pretrain.units import GIB, MIB

Auto = Literal["auto"]
TextDocuments = Literal["line", "blank-line", "file"]
EngineName = Literal["auto", "tokenizers", "nanotoken", "fastokens", "gigatoken"]


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture. A key that is left out takes the value of the --data option of that name."""

    name: str
    dataset: str = option(secret="url")
    weight: float = option(1.0, bounds="not negative")
    """Share of the tokens, relative to the other weights."""
    max_epochs: int | None = option(None, bounds="positive")
    """Epochs after which the source leaves the mixture; default: --max-epochs."""
    config: str | None = None
    """Configuration of the dataset, as --data.name."""
    split: str = "train"
    revision: str | None = None
    data_files: str | None = None
    data_dir: str | None = None
    storage_options: str | None = option(None, secret="keys", is_path=True)
    text_field: str | None = None
    text_template: str | None = None
    text_documents: TextDocuments | None = None
    min_characters: int | None = option(None, bounds="not negative")
    max_characters: int | None = option(None, bounds="positive")
    heldout_fraction: float | None = option(None, bounds="fraction")


@dataclass(frozen=True)
class WeightChange:
    """Other weights from a step on; sources that are not named keep theirs."""

    from_step: int
    weights: dict[str, float]


@dataclass(frozen=True)
class DataConfig:
    """The corpus: which documents are read, and how they become rows."""

    dataset: str | None = option(
        None,
        short="dataset",
        secret="url",
        required_or="--data.sources",
        synonyms="dataset-name corpus data-path train-file train-data train-dir input",
    )
    """Corpus to stream: a Hub id (org/name), a local folder, a file, a glob, a URL, or @FILE with one of these a line."""
    sources: tuple[SourceConfig, ...] = ()
    """Mixture, instead of --dataset: a list of records with name, dataset, weight (share of the tokens) and, optionally,
    max_epochs, config, split, revision, data_files, data_dir, storage_options, text_field, text_template, text_documents,
    min_characters, max_characters, heldout_fraction."""
    weight_schedule: tuple[WeightChange, ...] = ()
    """Weights that change during the run: a list of records with from_step and weights (name: weight)."""
    name: str | None = option(None, synonyms="dataset-config dataset-config-name config-name subset")
    """Configuration of the dataset, where it has several."""
    split: str = option("train", synonyms="train-split dataset-split")
    """Split to train on."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; pinned to a commit at the first start."""
    data_files: str | None = None
    """Pattern of files to read in a Hub dataset or local folder, instead of a split."""
    data_dir: str | None = None
    """Folder to read in a Hub dataset or local folder."""
    storage_options: str | None = option(None, may_change=True, secret="keys", is_path=True, synonyms="storage-opts")
    """JSON object of options for fsspec, for example '{"anon": true}', or @FILE with one. Never recorded."""
    reader: Literal["auto", "datasets"] = "auto"
    """auto: own reader for JSON lines, text and Parquet, `datasets` for the rest; datasets: always `datasets`."""
    text_field: str = option("text", synonyms="text-column text-column-name dataset-text-field text-key")
    """Field with the text; dots reach into nested objects (doc.body.text), and lists of them, whose texts are joined."""
    text_template: str | None = None
    """Text made of several fields, for example "{title}\\n\\n{body}"; fields without text are empty."""
    text_documents: TextDocuments = "line"
    """What a document of a text file (.txt, .text) is: a line, the lines between blank lines, or the whole file."""
    min_characters: int = option(0, bounds="not negative", synonyms="min-chars min-text-length")
    """Shorter documents are filtered out, and counted; 1 or more also filters those that are blank, null or lack the field."""
    max_characters: int | None = option(None, bounds="positive", synonyms="max-chars max-text-length")
    """Longer documents are filtered out, and counted."""
    special_tokens: Literal["text", "keep"] = "text"
    """How special tokens that you added, such as [DRUG], are read in documents: as text, or (keep) as tokens. Those with a role
    in the model, such as [MASK], [SEP] and <pad>, are always text."""
    engine: EngineName = option("auto", may_change=True, synonyms="tokenizer-backend tokenizer-engine backend")
    """Tokenizer package; all give the ids of tokenizers. auto: nanotoken (WordPiece) or fastokens (BPE) where it is installed
    and passes a check of its ids, else tokenizers."""
    drop_duplicates: bool = option(False, synonyms="dedup deduplicate")
    """Filter out documents with the same text as another of the same window, and count them."""
    sequence_length: int = option(
        512,
        short="sequence-length",
        bounds="positive",
        synonyms="max-seq-length max-length seq-length seq-len block-size context-length",
    )
    """Tokens of a row."""
    packing: Literal["best_fit", "concat", "none"] = option(
        "best_fit", synonyms="pack line-by-line pad-to-max-length group-texts"
    )
    """best_fit: several documents per row, chosen to fill it; concat: documents in reading order; none: one per row, padded."""
    # Values of "auto", here and below, depend on the machine and are pinned in corpus.json.
    lanes: int | Auto = option("auto", short="lanes", bounds="positive", may_change=True)
    """Number of sub-streams that the corpus is divided into; the same for the whole run, on any number of ranks and workers."""
    workers: int = option(
        1, short="workers", bounds="not negative", may_change=True, synonyms="num-workers dataloader-num-workers num-proc"
    )
    """Data worker processes per rank; 0 reads inside the training process. Does not change the rows of a step."""
    window_bytes: int | Auto = option(
        "auto", bounds="positive", may_change=True, synonyms="shuffle-buffer shuffle-buffer-size buffer-size"
    )
    """Uncompressed bytes that are shuffled together; a source of a mixture has its share of them."""
    heldout_fraction: float = option(
        0.0, bounds="fraction", synonyms="validation-split-percentage validation-fraction test-size"
    )
    """Share of the documents, chosen by a hash of their text, that is held out of training for evaluation."""
    max_line_bytes: int = option(64 * MIB, bounds="positive")
    """Longer lines, or other documents of text files, are skipped and counted."""
    max_bad_fraction: float = option(0.01, bounds="fraction", may_change=True)
    """The run fails when more than this share of the documents is skipped (judged after 1,000)."""
    on_bad_shard: Literal["error", "skip"] = option("error", may_change=True, synonyms="skip-bad-shards ignore-errors")
    """error: a damaged shard ends the run; skip: the damaged window is skipped, and what its lane would read after it in the
    shard."""
    retry_deadline: float = option(1800.0, bounds="not negative", may_change=True, synonyms="timeout max-retries retries")
    """Seconds for which a failing connection is retried before the run ends."""


@dataclass(frozen=True)
class ModelConfig:
    """The model, and how it is computed."""

    path: str | None = option(
        None,
        short="model",
        required_or="--model.config",
        is_path=True,
        synonyms="model-name-or-path model-name model-path pretrained-model",
    )
    """Model to continue from: a Hub id or a local folder. For a model from scratch, give --model.config instead."""
    config: str | None = option(None, is_path=True, synonyms="model-config model-config-name config-path config-overrides")
    """Train from scratch: a config.json, or a folder or Hub id with one. Needs --model.tokenizer."""
    tokenizer: str | None = option(None, is_path=True, synonyms="tokenizer-name tokenizer-name-or-path tokenizer-path")
    """Tokenizer, if not that of the model: a Hub id or a local folder."""
    revision: str | None = option(None, synonyms="model-revision")
    """Branch, tag or commit of a Hub model."""
    init_from: str | None = option(None, short="init-from", is_path=True, synonyms="init-checkpoint load-weights weights")
    """Take only the weights from this checkpoint or model folder; the run starts at step 0."""
    resize_embeddings: bool = option(False, synonyms="resize-token-embeddings resize-vocab")
    """Let the embedding grow to the size of the tokenizer, padded to a multiple of 64; from scratch, also let it shrink to
    that."""
    gradient_checkpointing: bool = option(False, may_change=True, synonyms="activation-checkpointing recompute")
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = option(False, may_change=True, synonyms="torch-compile torch-compile-mode")
    """Use torch.compile on the model."""
    trust_remote_code: bool = option(False, may_change=True, synonyms="allow-remote-code")
    """Run Python code from the folder of the model or tokenizer (auto_map). On the command line only."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model predicts."""

    name: Literal["mlm", "clm"] = option("mlm", synonyms="mlm clm objective task training-objective")
    """mlm: masked language modelling; clm: next-token prediction."""
    mask_rate: float = option(0.3, bounds="fraction", synonyms="mlm-probability mask-probability mask-prob mask-ratio")
    """Share of the maskable positions of a row that get a label (mlm)."""
    final_mask_rate: float | None = option(None, bounds="fraction", may_change=True)
    """Mask rate of the last step, approached linearly; none keeps the rate constant."""
    selection: Literal["token", "whole_word", "span"] = option(
        "token", synonyms="whole-word-mask whole-word-masking wwm masking-strategy"
    )
    """What is masked together: single tokens, whole words, or spans of words as in SpanBERT."""
    mask_share: float = option(0.8, bounds="fraction", synonyms="mask-replace-prob mask-token-prob")
    """Share of the labelled positions that become the mask token."""
    random_share: float = option(0.1, bounds="fraction", synonyms="random-replace-prob random-token-prob")
    """Share of the labelled positions that become a random token; the rest stay as they are."""


@dataclass(frozen=True)
class TrainConfig:
    """Steps, batch, optimizer and learning rate."""

    max_steps: int | None = option(
        None,
        short="max-steps",
        bounds="positive",
        may_change=True,
        required_or="--max-epochs",
        synonyms="steps num-steps max-train-steps num-train-steps train-iters max-iters",
    )
    """Optimizer steps of the run."""
    max_epochs: int | None = option(
        None, short="max-epochs", bounds="positive", may_change=True, synonyms="epochs num-epochs num-train-epochs"
    )
    """Read every document this many times; the run ends there or at --max-steps, whichever comes first."""
    global_batch_size: int = option(
        256,
        short="global-batch-size",
        bounds="positive",
        synonyms="batch-size train-batch-size gradient-accumulation-steps grad-accum accumulation-steps",
    )
    """Rows of one optimizer step, over all ranks."""
    micro_batch_size: int = option(
        32,
        short="micro-batch-size",
        bounds="positive",
        may_change=True,
        synonyms="per-device-train-batch-size per-device-batch-size per-device-eval-batch-size",
    )
    """Rows of one forward pass on one device: more rows need more memory and less time. The rows and masks of a step stay the
    same; only rounding and hidden dropout differ."""
    seed: int = option(0, short="seed", bounds="not negative", synonyms="random-seed data-seed")
    """Seed of the document order, masks, initial weights and dropout."""
    # Values of "auto" for this and the warm-up are chosen at the first start and pinned in every checkpoint.
    learning_rate: float | Auto = option(
        "auto", bounds="positive", may_change=True, synonyms="lr peak-lr max-lr peak-learning-rate"
    )
    """Peak learning rate. auto: 1e-4 where training starts from weights (--model, --init-from), 5e-4 from scratch."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = option(
        "wsd", may_change=True, synonyms="lr-scheduler-type lr-scheduler lr-schedule scheduler"
    )
    """Shape after the warm-up; wsd holds the peak, then decays by 1 - sqrt in the last --train.decay-fraction of the run."""
    warmup_steps: int | Auto = option(
        "auto", bounds="not negative", may_change=True, synonyms="warmup num-warmup-steps lr-warmup-steps warmup-ratio"
    )
    """Steps of linear warm-up from 0. auto: 6 % of the run as planned at its first start, at most 2,000. Where warm-up and
    decay overlap, the lower rate holds."""
    decay_fraction: float = option(0.2, bounds="fraction", may_change=True, synonyms="decay-ratio decay-steps")
    """Share of the run that decays (wsd)."""
    final_learning_rate: float = option(0.0, bounds="not negative", may_change=True, synonyms="min-lr final-lr lr-end")
    """Learning rate at the end of the run (wsd, cosine, linear)."""
    beta1: float = option(0.9, bounds="fraction", may_change=True, synonyms="adam-beta1")
    """AdamW: decay of the first moment."""
    beta2: float = option(0.98, bounds="fraction", may_change=True, synonyms="adam-beta2")
    """AdamW: decay of the second moment."""
    epsilon: float = option(1e-8, bounds="positive", may_change=True, synonyms="eps adam-eps adam-epsilon")
    """AdamW: added to the denominator."""
    weight_decay: float = option(0.01, bounds="not negative", may_change=True, synonyms="wd")
    """AdamW: decoupled weight decay; never on biases and norms."""
    max_grad_norm: float = option(
        1.0, bounds="positive", may_change=True, synonyms="clip-grad grad-clip gradient-clip-val gradient-clipping"
    )
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", may_change=True, synonyms="bf16 fp16 mixed-precision dtype torch-dtype"
    )
    """auto: bf16 autocast on GPUs that support it, else fp32."""
    max_bad_steps: int = option(10, bounds="not negative", may_change=True)
    """Consecutive steps with a non-finite loss or gradient that a run tolerates; one more ends it."""
    skip_steps: str | None = option(None, may_change=True, synonyms="skip-batches ignore-data-skip")
    """A:B, both included: read the rows of these steps and do not train on them. For a new run after a loss spike, with
    --resume PATH of a checkpoint before A and another --output-dir; later starts keep the gap without this option."""


@dataclass(frozen=True)
class EvalSetConfig:
    """One of several evaluation sets: documents of a dataset, or of a split of the corpus."""

    name: str
    dataset: str | None = option(None, secret="url")
    split: str | None = None
    weight: float = option(1.0, bounds="not negative")
    """Share of the mean loss, relative to the other weights."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on documents that are never trained on."""

    every: int = option(
        0,
        short="eval-every",
        bounds="not negative",
        may_change=True,
        synonyms="eval-steps eval-interval eval-strategy evaluation-strategy do-eval",
    )
    """Steps between evaluations; 0: none. Needs --data.heldout-fraction, --eval.split, --eval.dataset or --eval.sets."""
    documents: int = option(500, bounds="positive", may_change=True, synonyms="max-eval-samples eval-samples num-eval-samples")
    """Documents of each evaluation set, which stay the same for the whole run."""
    split: str | None = option(None, may_change=True, synonyms="validation-split val-split validation-split-name")
    """Split of the corpus to evaluate on."""
    dataset: str | None = option(
        None, may_change=True, secret="url", synonyms="eval-file eval-data validation-file validation-data"
    )
    """Dataset to evaluate on, as in --dataset."""
    sets: tuple[EvalSetConfig, ...] = option((), may_change=True, synonyms="eval-datasets validation-files")
    """Several evaluation sets instead, each with its own curve: a list of records with name, dataset or split (or both) and,
    optionally, weight (its share of eval/loss)."""
    max_read_bytes: int = option(GIB, short="max-read-bytes", bounds="positive", may_change=True)
    """Uncompressed bytes to read for each evaluation set, at most."""


@dataclass(frozen=True)
class RunConfig:
    """The folder of the run, checkpoints and logging."""

    output_dir: str | None = option(
        None, short="output-dir", may_change=True, is_path=True, synonyms="out out-dir output save-dir"
    )
    """Folder of the run; the same command resumes it. none: runs/<dataset>-<model>-<hash of the fixed options>."""
    resume: str = option(
        "auto",
        short="resume",
        may_change=True,
        is_path=True,
        synonyms="resume-from-checkpoint resume-from overwrite-output-dir",
    )
    """auto: resume the run in the folder; no: refuse a used folder; PATH of a checkpoint: begin a new run from it."""
    save_every: int = option(
        1000,
        short="save-every",
        bounds="positive",
        may_change=True,
        synonyms="save-steps save-interval save-strategy checkpointing-steps",
    )
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = option(3, bounds="positive", may_change=True, synonyms="save-total-limit max-checkpoints")
    """Newest checkpoints to keep."""
    keep_every: int = option(0, bounds="not negative", may_change=True)
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    keep_best: bool = option(False, may_change=True, synonyms="load-best-model-at-end save-best save-best-model")
    """Keep a checkpoint of the evaluation with the lowest loss in OUT/best. Needs --eval-every."""
    log_every: int = option(
        10, short="log-every", bounds="positive", may_change=True, synonyms="logging-steps log-steps log-interval"
    )
    """Steps between lines of metrics; step 1 and the last one have one too."""
    wandb: Literal["auto", "online", "offline", "disabled"] = option(
        "auto", may_change=True, synonyms="report-to use-wandb no-wandb with-tracking wandb-mode"
    )
    """Weights & Biases. auto: online with an API key, offline without."""
    wandb_project: str = option(
        "stream_pretrain", may_change=True, variable="WANDB_PROJECT", synonyms="project tracker-project-name"
    )
    """Weights & Biases project."""
    wandb_entity: str | None = option(None, may_change=True, variable="WANDB_ENTITY", synonyms="entity team")
    """Weights & Biases team or user."""
    wandb_name: str | None = option(None, may_change=True, variable="WANDB_NAME", synonyms="run-name")
    """Name of the run in Weights & Biases. none: the folder's name."""


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
    """Options given on the command line or in a file, by dotted name, even with their default."""


GROUPS: dict[str, Any] = {
    group.name: group.default_factory
    for group in dataclasses.fields(Config)
    if group.default_factory is not dataclasses.MISSING
}
"""The dataclass of each group of options."""


def fields_of(groups: Mapping[str, Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of these dataclasses by dotted name."""
    return {f"{group}.{option.name}": option for group, options in groups.items() for option in dataclasses.fields(options)}


def flatten(config: Config) -> dict[str, Any]:
    """All options by dotted name; records as plain dictionaries, text that is not UTF-8 escaped."""
    return {f"{group}.{name}": _plain(value) for group in GROUPS for name, value in vars(getattr(config, group)).items()}


def _plain(value: Any) -> Any:
    match value:
        case tuple():
            return [{key: _plain(inner) for key, inner in dataclasses.asdict(record).items()} for record in value]
        case str():
            return escaped(value)
        case _:
            return value


def sources_of(data: DataConfig) -> tuple[DataConfig, ...]:
    """The options of each source as if it were the only dataset."""
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


def defaults(config: Config) -> dict[str, Any]:
    """The default of every option."""
    groups: dict[str, Any] = {group: type(getattr(config, group))() for group in GROUPS}
    return flatten(dataclasses.replace(config, **groups))


def fixed_options(config: Config) -> dict[str, Any]:
    """The options that must not change in a run (seed, batch, objective, corpus...), by dotted name."""
    fields = fields_of({group: getattr(config, group) for group in GROUPS})
    return {name: value for name, value in flatten(config).items() if not fields[name].metadata.get("may_change")}


def without_places(fixed: dict[str, Any]) -> dict[str, Any]:
    """Fixed options without the place of the corpus, which may move: its shards are compared instead.

    Keys of sources without a value are dropped, since the run may have begun before there was such a key.
    """
    places = ("dataset", "storage_options")
    records = fixed.get("data.sources", [])
    records = [{k: v for k, v in record.items() if k not in places and v is not None} for record in records]
    return {**{name: value for name, value in fixed.items() if name != "data.dataset"}, "data.sources": records}
