"""What is answered to a name that is no option: what to give instead, or that there is nothing like it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from stream_pretrain.config.option_names import (
    ALL_GROUPS,
    DOTTED,
    FLAGS,
    NAMES,
    SHORT,
    SYNONYMS,
    TYPES,
    help_texts,
    usual_name,
)
from stream_pretrain.errors import ConfigError
from stream_pretrain.nearest_names import did_you_mean

_REASONS = {
    "AdamW is the only optimizer": "adafactor optim optim-args optim-target-modules optimizer optimizers",
    "a GPU is used where there is one, and CUDA_VISIBLE_DEVICES says which": (
        "accelerator cpu cuda device devices gpu gpus no-cuda use-cpu"
    ),
    "torchrun or accelerate launch starts a process for each GPU": (
        "ddp ddp-backend ddp-find-unused-parameters ddp-timeout dist-backend dist-timeout distributed-backend local-rank "
        "nnodes node-rank nproc-per-node num-gpus num-nodes num-processes strategy"
    ),
    "every GPU has the whole model: there is no DeepSpeed, FSDP, model parallelism, adapter or quantization": (
        "adapter deepspeed fsdp fsdp-config load-in-4bit load-in-8bit lora lora-r parallelism-config peft "
        "pipeline-parallel-degree tensor-model-parallel-size tensor-parallel-degree zero-stage"
    ),
    "set the variable HF_TOKEN": "hf-token hub-token token use-auth-token",
    "set the variable HF_HOME": "cache cache-dir hf-home",
    "nothing is uploaded: OUT/model is what `hf upload` takes": (
        "hub-always-push hub-model-id hub-private-repo hub-revision hub-strategy push-to-hub"
    ),
    "the corpus is always streamed, and nothing is prepared": (
        "dataset-prepared-path keep-in-memory load-from-cache-file num-preprocessing-workers overwrite-cache preprocess "
        "streaming"
    ),
    "windows and shards are always shuffled, in an order that --seed decides": (
        "dataloader-shuffle group-by-length shuffle shuffle-algo shuffle-train"
    ),
    "the config.json of the model says that": (
        "attention-dropout d-model dropout hidden-dropout hidden-size intermediate-size max-position-embeddings model-type "
        "n-embd n-head n-layer n-layers num-attention-heads num-heads num-hidden-layers num-layers vocab-size"
    ),
    "packed rows have an attention of their own": (
        "attn-implementation flash-attention flash-attn use-flash-attention use-flash-attention-2 use-flash-attn "
        "xformers-attention"
    ),
    "all steps but the last of a run are full": "dataloader-drop-last drop-last",
    "workers prefetch as much as they need": (
        "dataloader-persistent-workers dataloader-pin-memory dataloader-prefetch-factor pin-memory prefetch-factor"
    ),
    "a run is always repeatable": "deterministic deterministic-mode full-determinism",
    "only fast tokenizers are supported": "use-fast use-fast-tokenizer use-slow-tokenizer",
    "the run ends at --max-steps or --max-epochs; SIGUSR1 or SIGTERM stops it before, with a checkpoint": (
        "early-stopping early-stopping-patience exit-duration-in-mins exit-interval limit-train-batches max-duration max-hours "
        "max-time max-tokens max-train-samples min-epochs min-steps patience"
    ),
    "it always trains; `stream-pretrain evaluate` compares models": "do-predict do-test do-train eval-only test-only",
    "metrics are in OUT/metrics.jsonl, and in Weights & Biases": (
        "enable-tensorboard logdir logging-dir mlflow tensorboard tensorboard-dir"
    ),
    "the line of progress is always there; send stderr elsewhere": (
        "disable-tqdm enable-progress-bar log-level progress-bar quiet silent verbose"
    ),
}
WITHOUT = {name: why for why, names in _REASONS.items() for name in names.split()}
"""Why there is no such option, by its name in other programs."""
_OF_FILES = ("cfg", "config-file", "config-yaml", "options-file", "yaml")


def resolve(name: str, origin: str = "", takes: Callable[[str], bool] = lambda _: True) -> str:
    """The dotted name of an option.

    origin: begin of the error for a name that is none, where it is from.
    takes: whether an option, by its dotted name, may be suggested.
    Raises: ConfigError.
    """
    if name in NAMES:
        return NAMES[name]
    raise ConfigError(f"{origin}unknown option --{name}{instead(name, takes)}")


def instead(name: str, takes: Callable[[str], bool] = lambda _: True) -> str:
    """The end of the error for a name that is no option: what to give instead, or why there is nothing like it."""
    last = name.rpartition(".")[2]
    for called in (name, name.replace(".", "-"), last):
        if called in SYNONYMS:
            dotted = SYNONYMS[called]
            names = " or ".join(f"--{name}" for name in dict.fromkeys((usual_name(dotted), dotted)))
            return f"; use {names}: {help_texts()[dotted]}"
    sharing = [dotted for dotted in DOTTED if dotted.endswith(f".{last}") and takes(dotted)]
    if len(sharing) != 1 and (why := WITHOUT.get(last) or WITHOUT.get(name.partition(".")[0])):
        return f"; there is none: {why}"
    if last in _OF_FILES:
        return "; use --config FILE.yaml"
    if name in ALL_GROUPS:
        return f"; it is a group: give one of its options as --{name}.OPTION"
    positive = name.removeprefix("no-")
    if positive != name and positive in NAMES and TYPES[NAMES[positive]] is bool:
        return f"; give --{positive} false"
    if len(sharing) > 1:
        return f"; give {' or '.join(f'--{dotted}' for dotted in sharing)}"
    known = [*(option for option in dict.fromkeys((*SHORT, *NAMES)) if takes(NAMES[option])), *FLAGS]
    return suggestion(name, known, "--") or (did_you_mean(f"--{sharing[0]}") if sharing else "; see --help")


def suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A question that ends a message: the name that is spelt most alike, or else one that begins with these letters."""
    nearest = difflib.get_close_matches(name.lower(), known, 1, 0.75)  # at 0.7, --token would be --tokenizer, which it is not
    nearest = nearest or [word for word in known if len(name) > 2 and word.startswith(name)]
    return did_you_mean(f"{prefix}{nearest[0]}") if nearest else ""
