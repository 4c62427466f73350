"""Fine-tunes BERT, GPT and ViT checkpoints: a recipe goes in, a run directory comes out."""

# The name on the package index, where `finetune` is another project.
DISTRIBUTION = "finetune-recipes"
