"""`stream-pretrain evaluate`: compare models on the same documents, with the same masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import transformers

from stream_pretrain.arguments import Invocation
from stream_pretrain.commands import Answer
from stream_pretrain.comparison.candidates import candidates_of
from stream_pretrain.comparison.compare import compared, judge
from stream_pretrain.comparison.documents import documents_of
from stream_pretrain.comparison.probe import read_labelled
from stream_pretrain.comparison.table import lines_of
from stream_pretrain.config import COMMAND_GROUPS
from stream_pretrain.data.randomness import EVAL_MASK, keyed_generator
from stream_pretrain.training.report.progress import Progress
from stream_pretrain.training.state.checkpoint import verify_models

GROUPS = ("evaluate", "data", "objective")
ALSO = ("model.trust-remote-code",)
NEEDED = ("data.dataset",)
OPERANDS = "MODEL..."
EXAMPLE = """
stream-pretrain evaluate bert-base-uncased runs/first/model \\
    --dataset 'heldout/*.jsonl.zst' --sequence-length 128
"""


def run(given: Invocation, progress: Progress) -> Answer:
    """Measure each model."""
    config, options = given.config, given.own["evaluate"]
    assert isinstance(options, COMMAND_GROUPS["evaluate"])
    transformers.utils.logging.disable_progress_bar()  # the phases show the progress
    labelled = None if options.probe is None else read_labelled(Path(options.probe))
    verify_models(*given.operands)
    candidates = candidates_of(given.operands, config)
    with progress.phase("reading documents") as report:
        documents = documents_of(config.data, options.sample, options.max_bytes, report, progress.warning)
        report(f"{len(documents.texts):,}")
    models = []
    for candidate in candidates:  # all of them before the first is measured, which takes minutes: any may be refused
        with progress.phase(f"{candidate.name}: loading"):
            models.append(candidate.load(config.data.sequence_length))
    count = len(documents.texts)
    sample = np.sort(keyed_generator(0, EVAL_MASK, 0, count).permutation(count)[: options.likelihood_sample])
    judged = [
        judge(candidate, model, config, documents, sample, labelled, options.batch_rows, progress.phase)
        for candidate, model in zip(candidates, models, strict=True)
    ]
    result = compared(judged, documents, sample, candidates[0].objective.name)
    return Answer(list(lines_of(result)), result)
