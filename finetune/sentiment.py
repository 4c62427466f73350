"""Classifies film reviews: BERT on IMDB, 94.6 % published (Sun et al. 2019, BERT-base).

accelerate launch finetune/sentiment.py
accelerate launch finetune/sentiment.py recipes/imdb/minilm-lora.yaml --learning_rate 3e-4
"""

from finetune.cli import launch

RECIPE = "recipes/imdb/minilm.yaml"

if __name__ == "__main__":
    launch(RECIPE)
