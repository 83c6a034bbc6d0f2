"""Print what a masked language model fills in.

python scripts/demo_predictions.py MODEL_FOLDER
"""

from __future__ import annotations

import sys

from transformers import pipeline
from transformers.utils import logging

SENTENCES = [
    "Return a list [MASK] the names in the directory.",
    "Raise an exception if the file [MASK] not exist.",
    "The function takes two [MASK].",
]


def main(folder: str) -> None:
    logging.disable_progress_bar()
    fill = pipeline("fill-mask", model=folder, top_k=3)
    for sentence in SENTENCES:
        words = ", ".join(f"{answer['token_str']} ({answer['score']:.0%})" for answer in fill(sentence))
        print(f"{sentence}  ->  {words}")


if __name__ == "__main__":
    main(sys.argv[1])
