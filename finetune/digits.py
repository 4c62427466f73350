"""Handwritten digits and other small images: ViT and convolutional nets on MNIST.

accelerate launch finetune/digits.py
accelerate launch finetune/digits.py recipes/mnist/vit.yaml --learning_rate 5e-4
"""

import sys

from finetune.cli import guarded, train

RECIPE = "recipes/mnist/vit.yaml"


def main() -> None:
    """Train the recipe named on the command line, else the default."""
    guarded(train, sys.argv[1:], RECIPE)


if __name__ == "__main__":
    main()
