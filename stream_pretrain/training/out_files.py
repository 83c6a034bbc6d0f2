"""OUT, the folder of one run: the names of what lies in it.

JSON lines are appended by `records`; every other file is replaced by `atomic_files`, every folder by `atomic_folders`: at any
moment, also after a kill, the old one or the new one is there.
"""

LOCK = "lock"
"""Held by the process that trains; names it, and beats as long as it lives (`lock`)."""
RUN = "run.json"
"""State of the run, for people and schedulers (`run_directory`)."""
METRICS = "metrics.jsonl"
"""One line for each logged step."""
QUARANTINE = "quarantine.jsonl"
"""Documents that were skipped."""
BAD_STEPS = "bad_steps.jsonl"
"""Documents of steps that changed nothing."""
CHECKPOINTS = "checkpoints"
"""One folder for each checkpoint (`checkpoint`)."""
CURSORS = "cursors"
"""Where the lanes stood in the checkpoints that were deleted since."""
MODEL = "model"
"""The final model."""
EVALUATION = "evaluation.jsonl"
"""Documents of the evaluation set."""
EVALUATION_ORIGIN = "evaluation.json"
"""The options that they were collected by."""
WANDB = "wandb"
"""Files of Weights & Biases."""
WANDB_ID = "wandb-id"
"""Its id of the run."""
WANDB_SENT = "wandb-sent-step"
"""The last step that its server is known to have."""

RECORDS = (METRICS, QUARANTINE, BAD_STEPS)
FILES = (RUN, *RECORDS, EVALUATION, EVALUATION_ORIGIN, WANDB_ID)
"""What OUT may hold besides its lock, its options and its folders."""
