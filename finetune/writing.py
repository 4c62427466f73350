"""Film reviews: GPT checkpoints learn to write them; SmolLM2-135M embedded, GPT-2 from the hub.

accelerate launch finetune/writing.py
accelerate launch finetune/writing.py recipes/reviews/smollm2-full.yaml --learning_rate 2e-5
"""

import sys

from finetune.cli import guarded, train

RECIPE = "recipes/reviews/smollm2-lora.yaml"


def main() -> None:
    """Train the recipe named on the command line, else the default."""
    guarded(train, sys.argv[1:], RECIPE)


if __name__ == "__main__":
    main()
