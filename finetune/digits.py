"""Classifies handwritten digits and other small images: ViT and convolutional nets on MNIST.

accelerate launch finetune/digits.py
accelerate launch finetune/digits.py recipes/mnist/vit.yaml --learning_rate 5e-4
"""

from finetune.cli import launch

RECIPE = "recipes/mnist/vit.yaml"

if __name__ == "__main__":
    launch(RECIPE)
