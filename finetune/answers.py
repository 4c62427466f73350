"""Answers questions about a text: BERT-base on SQuAD 1.1, F1 88.5 published (Devlin et al. 2019).

accelerate launch finetune/answers.py
accelerate launch finetune/answers.py recipes/your-data/questions.yaml --train squad.json
"""

from finetune.cli import launch

RECIPE = "recipes/squad/bert-base.yaml"

if __name__ == "__main__":
    launch(RECIPE)
