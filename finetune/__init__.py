"""Fine-tune BERT, GPT and ViT checkpoints: a recipe goes in, a run directory comes out."""
