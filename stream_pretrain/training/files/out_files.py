"""OUT, the folder of one run: the names of its files and folders.

JSON lines are appended by `records`; every other file is replaced by `atomic_files`, every folder by `atomic_folders`: at any
moment, also after a kill, the old one or the new one is there.
"""

LOCK = "lock"
"""Held by the process that trains: its host, pid, token and heartbeat (`lock`)."""
RUN = "run.json"
"""State of the run, for people and schedulers (`run_directory`)."""
METRICS = "metrics.jsonl"
"""One line per logged step."""
QUARANTINE = "quarantine.jsonl"
"""Skipped documents."""
BAD_STEPS = "bad_steps.jsonl"
"""Documents of steps without an update."""
PASSED_OVER = "passed_over.jsonl"
"""Documents of the steps of --train.skip-steps."""
CHECKPOINTS = "checkpoints"
"""A folder per checkpoint (`checkpoint`)."""
BEST = "best"
"""The checkpoint of the best evaluation (`best_checkpoint`)."""
CURSORS = "cursors"
"""The cursors of deleted checkpoints."""
MODEL = "model"
"""The final model."""
EVALUATION = "evaluation.jsonl"
"""Documents of the evaluation sets."""
EVALUATION_ORIGIN = "evaluation.json"
"""The options that they were collected with."""
ENGINE = "engine.json"
"""That the run continues with `tokenizers`, and why: a faster engine gave other ids."""
WANDB = "wandb"
"""Files of Weights & Biases."""
WANDB_ID = "wandb-id"
"""The id of its run."""
WANDB_SENT = "wandb-sent-step"
"""The last step that its server has acknowledged."""

RECORDS = (METRICS, QUARANTINE, BAD_STEPS, PASSED_OVER)
FILES = (RUN, *RECORDS, EVALUATION, EVALUATION_ORIGIN, ENGINE, WANDB_ID)
"""What OUT may hold besides its lock, config.yaml and its folders."""
