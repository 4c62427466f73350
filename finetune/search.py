"""Finds passages for queries: embeddings by MiniLM, BBC headlines with their articles.

accelerate launch finetune/search.py
accelerate launch finetune/search.py recipes/bbc/minilm.yaml --learning_rate 1e-5
"""

from finetune.cli import launch

RECIPE = "recipes/bbc/minilm.yaml"

if __name__ == "__main__":
    launch(RECIPE)
