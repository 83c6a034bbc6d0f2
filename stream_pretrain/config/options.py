"""Every option of a run, declared once: the docstring under a field is its `--help`.

Frozen dataclasses of plain values, without heavy imports, so that `--help` is immediate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stream_pretrain.config.corpus_options import Auto, DataConfig
from stream_pretrain.config.option_field import option
from stream_pretrain.units import GIB


@dataclass(frozen=True)
class ModelConfig:
    """The model, and how it is computed."""

    path: str | None = option(
        None,
        short="model",
        required_or="--model.config",
        is_path=True,
        synonyms="model-name-or-path model-name model-path pretrained-model base-model model-id name-or-path",
    )
    """Model to continue from: a Hub id or a local folder. For a model from scratch, give --model.config instead."""
    config: str | None = option(
        None, is_path=True, synonyms="model-config model-config-name config-path config-overrides base-model-config model-args"
    )
    """Train from scratch: a config.json, or a folder or Hub id with one. Needs --model.tokenizer."""
    tokenizer: str | None = option(
        None,
        is_path=True,
        synonyms=(
            "tokenizer-name tokenizer-name-or-path tokenizer-path tokenizer-config tokenizer-type tokenizer-model vocab-file"
        ),
    )
    """Tokenizer, if not that of the model: a Hub id or a local folder."""
    revision: str | None = option(None, synonyms="model-revision")
    """Branch, tag or commit of a Hub model."""
    init_from: str | None = option(
        None,
        short="init-from",
        is_path=True,
        synonyms=(
            "init-checkpoint load-weights weights load-path load-weights-only initial-load-path restore-file finetune-from"
        ),
    )
    """Take only the weights from this checkpoint or model folder; the run starts at step 0."""
    resize_embeddings: bool = option(False, synonyms="resize-token-embeddings resize-vocab")
    """Let the embedding grow to the size of the tokenizer, padded to a multiple of 64; from scratch, also let it shrink to
    that."""
    gradient_checkpointing: bool = option(
        False,
        may_change=True,
        synonyms=(
            "activation-checkpointing recompute recompute-activations recompute-granularity use-gradient-checkpointing "
            "gradient-checkpointing-kwargs"
        ),
    )
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = option(
        False, may_change=True, synonyms="torch-compile torch-compile-mode torch-compile-backend compile-config use-compile"
    )
    """Use torch.compile on the model."""
    trust_remote_code: bool = option(False, may_change=True, synonyms="allow-remote-code")
    """Run Python code from the folder of the model or tokenizer (auto_map). On the command line only."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model predicts."""

    name: Literal["mlm", "clm"] = option("mlm", synonyms="mlm clm objective task training-objective")
    """mlm: masked language modelling; clm: next-token prediction."""
    mask_rate: float = option(
        0.3,
        bounds="fraction",
        synonyms="mlm-probability mask-probability mask-prob mask-ratio masking-probability masking-rate",
    )
    """Share of the maskable positions of a row that get a label (mlm)."""
    final_mask_rate: float | None = option(None, bounds="fraction", may_change=True)
    """Mask rate of the last step, approached linearly; none keeps the rate constant."""
    selection: Literal["token", "whole_word", "span"] = option(
        "token", synonyms="whole-word-mask whole-word-masking wwm masking-strategy mask-whole-words"
    )
    """What is masked together: single tokens, whole words, or spans of words as in SpanBERT."""
    mask_share: float = option(0.8, bounds="fraction", synonyms="mask-replace-prob mask-token-prob leave-unmasked-prob")
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
        synonyms=(
            "steps num-steps max-train-steps num-train-steps train-iters max-iters total-steps train-steps "
            "training-steps num-training-steps iterations num-iterations max-update total-num-update"
        ),
    )
    """Optimizer steps of the run."""
    max_epochs: int | None = option(
        None,
        short="max-epochs",
        bounds="positive",
        may_change=True,
        synonyms="epochs num-epochs num-train-epochs max-epoch train-epochs",
    )
    """Read every document this many times; the run ends there or at --max-steps, whichever comes first."""
    global_batch_size: int = option(
        256,
        short="global-batch-size",
        bounds="positive",
        synonyms=(
            "batch-size train-batch-size gradient-accumulation-steps grad-accum accumulation-steps "
            "global-train-batch-size total-batch-size effective-batch-size accumulate-grad-batches grad-accum-steps "
            "update-freq"
        ),
    )
    """Rows of one optimizer step, over all ranks."""
    micro_batch_size: int = option(
        32,
        short="micro-batch-size",
        bounds="positive",
        may_change=True,
        synonyms=(
            "per-device-train-batch-size per-device-batch-size per-device-eval-batch-size device-train-microbatch-size "
            "device-batch-size device-eval-batch-size local-batch-size eval-batch-size microbatch-size max-sentences"
        ),
    )
    """Rows of one forward pass on one device: more rows need more memory and less time. The rows and masks of a step stay the
    same; only rounding and hidden dropout differ."""
    seed: int = option(
        0, short="seed", bounds="not negative", synonyms="random-seed data-seed global-seed shuffle-seed manual-seed"
    )
    """Seed of the document order, masks, initial weights and dropout."""
    # Values of "auto" for this and the warm-up are chosen at the first start and pinned in every checkpoint.
    learning_rate: float | Auto = option(
        "auto", bounds="positive", may_change=True, synonyms="lr peak-lr max-lr peak-learning-rate base-lr"
    )
    """Peak learning rate. auto: 1e-4 where training starts from weights (--model, --init-from), 5e-4 from scratch."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = option(
        "wsd",
        may_change=True,
        synonyms=(
            "lr-scheduler-type lr-scheduler lr-schedule scheduler lr-decay-style decay-type schedulers lr-scheduler-kwargs"
        ),
    )
    """Shape after the warm-up; wsd holds the peak, then decays by 1 - sqrt in the last --train.decay-fraction of the run."""
    warmup_steps: int | Auto = option(
        "auto",
        bounds="not negative",
        may_change=True,
        synonyms=(
            "warmup num-warmup-steps lr-warmup-steps warmup-ratio warmup-iters warmup-updates warmup-fraction "
            "warmup-proportion lr-warmup lr-warmup-iters lr-warmup-fraction"
        ),
    )
    """Steps of linear warm-up from 0. auto: 6 % of the run as planned at its first start, at most 2,000. Where warm-up and
    decay overlap, the lower rate holds."""
    decay_fraction: float = option(
        0.2, bounds="fraction", may_change=True, synonyms="decay-ratio decay-steps lr-decay-iters decay-iters"
    )
    """Share of the run that decays (wsd)."""
    final_learning_rate: float = option(
        0.0,
        bounds="not negative",
        may_change=True,
        synonyms=(
            "min-lr final-lr lr-end end-learning-rate min-learning-rate end-lr lr-min min-lr-ratio min-lr-factor "
            "cosine-min-lr-ratio"
        ),
    )
    """Learning rate at the end of the run (wsd, cosine, linear)."""
    beta1: float = option(0.9, bounds="fraction", may_change=True, synonyms="adam-beta1 adam-betas betas")
    """AdamW: decay of the first moment."""
    beta2: float = option(0.98, bounds="fraction", may_change=True, synonyms="adam-beta2")
    """AdamW: decay of the second moment."""
    epsilon: float = option(1e-8, bounds="positive", may_change=True, synonyms="eps adam-eps adam-epsilon")
    """AdamW: added to the denominator."""
    weight_decay: float = option(0.01, bounds="not negative", may_change=True, synonyms="wd")
    """AdamW: decoupled weight decay; never on biases and norms."""
    max_grad_norm: float = option(
        1.0,
        bounds="positive",
        may_change=True,
        synonyms="clip-grad grad-clip gradient-clip-val gradient-clipping max-norm clip-norm gradient-clip grad-norm",
    )
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        may_change=True,
        synonyms="bf16 fp16 mixed-precision dtype torch-dtype tf32 amp use-bf16 bf16-full-eval fp16-full-eval",
    )
    """auto: bf16 autocast on GPUs that support it, else fp32."""
    max_bad_steps: int = option(10, bounds="not negative", may_change=True, synonyms="detect-anomaly")
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
        synonyms=(
            "eval-steps eval-interval eval-strategy evaluation-strategy do-eval eval-freq evals-per-epoch "
            "eval-on-start val-check-interval validation-freq validate-interval-updates check-val-every-n-epoch"
        ),
    )
    """Steps between evaluations; 0: none. Needs --data.heldout-fraction, --eval.split, --eval.dataset or --eval.sets."""
    documents: int = option(
        500,
        bounds="positive",
        may_change=True,
        synonyms=(
            "max-eval-samples eval-samples num-eval-samples eval-iters eval-subset-num-batches limit-val-batches "
            "max-val-samples"
        ),
    )
    """Documents of each evaluation set, which stay the same for the whole run."""
    split: str | None = option(None, may_change=True, synonyms="validation-split val-split validation-split-name")
    """Split of the corpus to evaluate on."""
    dataset: str | None = option(
        None,
        may_change=True,
        secret="url",
        synonyms="eval-file eval-data validation-file validation-data validation-dataset val-dataset val-data val-file",
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
        None,
        short="output-dir",
        may_change=True,
        is_path=True,
        synonyms=(
            "out out-dir output save-dir save-folder save-path default-root-dir dump-folder checkpoint-dir ckpt-dir work-dir"
        ),
    )
    """Folder of the run; the same command resumes it. none: runs/<dataset>-<model>-<hash of the fixed options>."""
    resume: str = option(
        "auto",
        short="resume",
        may_change=True,
        is_path=True,
        synonyms=(
            "resume-from-checkpoint resume-from overwrite-output-dir ckpt-path load autoresume auto-resume "
            "auto-resume-from-checkpoints resume-training"
        ),
    )
    """auto: resume the run in the folder; no: refuse a used folder; PATH of a checkpoint: begin a new run from it."""
    save_every: int = option(
        1000,
        short="save-every",
        bounds="positive",
        may_change=True,
        synonyms=(
            "save-steps save-interval save-strategy checkpointing-steps save-freq saves-per-epoch "
            "save-interval-updates checkpoint-interval checkpoint-every enable-checkpointing"
        ),
    )
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = option(
        3,
        bounds="positive",
        may_change=True,
        synonyms=(
            "save-total-limit max-checkpoints save-num-checkpoints-to-keep save-top-k keep-latest-k keep-last-epochs "
            "keep-interval-updates"
        ),
    )
    """Newest checkpoints to keep."""
    keep_every: int = option(0, bounds="not negative", may_change=True)
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    keep_best: bool = option(
        False,
        may_change=True,
        synonyms="load-best-model-at-end save-best save-best-model keep-best-checkpoints metric-for-best-model",
    )
    """Keep a checkpoint of the evaluation with the lowest loss in OUT/best. Needs --eval-every."""
    log_every: int = option(
        10,
        short="log-every",
        bounds="positive",
        may_change=True,
        synonyms=(
            "logging-steps log-steps log-interval log-every-n-steps log-freq console-log-interval logging-interval "
            "logging-first-step logging-strategy"
        ),
    )
    """Steps between lines of metrics; step 1 and the last one have one too."""
    wandb: Literal["auto", "online", "offline", "disabled"] = option(
        "auto",
        may_change=True,
        synonyms="report-to use-wandb no-wandb with-tracking wandb-mode wandb-log enable-wandb disable-wandb logger loggers",
    )
    """Weights & Biases. auto: online with an API key, offline without; disabled: not at all."""
    wandb_project: str = option(
        "stream_pretrain", may_change=True, variable="WANDB_PROJECT", synonyms="project tracker-project-name"
    )
    """Weights & Biases project."""
    wandb_entity: str | None = option(None, may_change=True, variable="WANDB_ENTITY", synonyms="entity team")
    """Weights & Biases team or user."""
    wandb_name: str | None = option(
        None, may_change=True, variable="WANDB_NAME", synonyms="run-name wandb-run-name wandb-exp-name experiment-name exp-name"
    )
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
