"""Writes one text for another: words to phonemes from scratch, T5, BART and Marian from the hub.

accelerate launch finetune/translation.py
accelerate launch finetune/translation.py recipes/xsum/t5-small.yaml --learning_rate 5e-5
"""

from finetune.cli import launch

RECIPE = "recipes/cmudict/transformer.yaml"

if __name__ == "__main__":
    launch(RECIPE)
