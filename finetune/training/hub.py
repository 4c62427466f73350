"""Uploads a finished run to the hub."""

from huggingface_hub import HfApi

from finetune import run_directory
from finetune.recipe import Recipe


def push(recipe: Recipe, run: run_directory.Run) -> None:
    """Uploads the model folder with its card to the hub repository that the recipe names."""
    api, training = HfApi(), recipe.training
    name = str(training.get("hub_model_id") or recipe.name.replace("/", "-"))
    private = bool(training.get("hub_private_repo", False))
    repo = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo.repo_id, folder_path=run.model, revision=training.get("hub_revision")
    )
