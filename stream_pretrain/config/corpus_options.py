"""The options of the corpus, declared as those of `options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stream_pretrain.config.option_field import option
from stream_pretrain.units import MIB

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
        synonyms=(
            "dataset-name corpus data-path train-file train-data train-dir input dataset-path data-local data-remote "
            "pretraining-dataset train-files"
        ),
    )
    """Corpus to stream: a Hub id (org/name), a local folder, a file, a glob, a URL, or @FILE with one of these a line."""
    sources: tuple[SourceConfig, ...] = ()
    """Mixture, instead of --dataset: a list of records with name, dataset, weight (share of the tokens) and, optionally,
    max_epochs, config, split, revision, data_files, data_dir, storage_options, text_field, text_template, text_documents,
    min_characters, max_characters, heldout_fraction."""
    weight_schedule: tuple[WeightChange, ...] = ()
    """Weights that change during the run: a list of records with from_step and weights (name: weight)."""
    name: str | None = option(None, synonyms="dataset-config dataset-config-name config-name subset dataset-subset")
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
    text_field: str = option("text", synonyms="text-column text-column-name dataset-text-field text-key text-col")
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
        synonyms=(
            "max-seq-length max-length seq-length seq-len block-size context-length max-seq-len max-sequence-length "
            "sequence-len tokens-per-sample model-max-length context-size seq"
        ),
    )
    """Tokens of a row."""
    packing: Literal["best_fit", "concat", "none"] = option(
        "best_fit",
        synonyms="pack line-by-line pad-to-max-length group-texts sample-packing pad-to-sequence-len sample-break-mode",
    )
    """best_fit: several documents per row, chosen to fill it; concat: documents in reading order; none: one per row, padded."""
    # Values of "auto", here and below, depend on the machine and are pinned in corpus.json.
    lanes: int | Auto = option("auto", short="lanes", bounds="positive", may_change=True)
    """Number of sub-streams that the corpus is divided into; the same for the whole run, on any number of ranks and workers."""
    workers: int = option(
        1,
        short="workers",
        bounds="not negative",
        may_change=True,
        synonyms=("num-workers dataloader-num-workers num-proc preprocessing-num-workers dataset-processes dataloader-workers"),
    )
    """Data worker processes per rank; 0 reads inside the training process. Does not change the rows of a step."""
    window_bytes: int | Auto = option(
        "auto", bounds="positive", may_change=True, synonyms="shuffle-buffer shuffle-buffer-size buffer-size shuffle-block-size"
    )
    """Uncompressed bytes that are shuffled together; a source of a mixture has its share of them."""
    heldout_fraction: float = option(
        0.0,
        bounds="fraction",
        synonyms="validation-split-percentage validation-fraction test-size val-set-size val-fraction val-size",
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
