"""Sentiment of film reviews: BERT on IMDB, 94.6 % published (Sun et al. 2019, BERT-base).

accelerate launch finetune/sentiment.py
accelerate launch finetune/sentiment.py recipes/imdb/minilm-lora.yaml --learning_rate 3e-4
"""

import sys

from finetune.cli import guarded, train

RECIPE = "recipes/imdb/minilm.yaml"


def main() -> None:
    """Train the recipe named on the command line, else the default."""
    guarded(train, sys.argv[1:], RECIPE)


if __name__ == "__main__":
    main()
