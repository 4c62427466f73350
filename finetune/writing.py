"""Generates film reviews: GPT checkpoints, SmolLM2-135M embedded and GPT-2 from the hub.

accelerate launch finetune/writing.py
accelerate launch finetune/writing.py recipes/reviews/smollm2-full.yaml --learning_rate 2e-5
"""

from finetune.cli import launch

RECIPE = "recipes/reviews/smollm2-lora.yaml"

if __name__ == "__main__":
    launch(RECIPE)
