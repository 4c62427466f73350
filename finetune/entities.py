"""Finds names in sentences: BERT on tagged words, WNUT-16 embedded and CoNLL-2003 from the hub.

accelerate launch finetune/entities.py
accelerate launch finetune/entities.py recipes/wnut16/minilm-lora.yaml --learning_rate 5e-4
"""

from finetune.cli import launch

RECIPE = "recipes/wnut16/minilm.yaml"

if __name__ == "__main__":
    launch(RECIPE)
