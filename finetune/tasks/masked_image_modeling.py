"""Pretraining on images without labels: a masked autoencoder (He et al. 2022).

- Most patches of an image are hidden; the encoder, a ViT, sees the others.
- A small decoder reconstructs the hidden patches; the loss is their mean squared error.
- ``checkpoint: runs/…`` in another recipe starts a classifier from the encoder.
"""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from transformers import AutoConfig, AutoImageProcessor, ViTMAEConfig
from transformers.models.vit_mae import modeling_vit_mae
from transformers.utils.generic import ModelOutput

from finetune.data import augmentation, corpus, image_decoding, row_random, sources
from finetune.data.packing import IGNORED
from finetune.errors import UserError, refuse_unknown
from finetune.evaluation import intervals, metrics, scoring
from finetune.models import configs, pretrained
from finetune.recipe import Recipe
from finetune.tasks import images
from finetune.tasks.base import Task
from finetune.tasks.usage import quoted
from finetune.training.job import Job

HEADLINE = "explained_variance"
SHEET_ROWS = 8


class ViTMAEForPreTraining(modeling_vit_mae.ViTMAEForPreTraining):
    """transformers' model with scores for each image; it keeps the name, so it saves as it.

    ``logits`` (B, 2): the share of the hidden patches' variance that is explained (1 is a perfect
    reconstruction, 0 their mean color), and the loss, a mean over the hidden pixels.
    """

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """Returns a model with random weights, as the Auto classes do, and fixed positions.

        transformers 5.23 leaves these at zero: every hidden patch then looks alike to the decoder,
        and nothing but their mean color can be learned.
        """
        model = cls._from_config(config)
        embeddings: Any = model.vit.embeddings
        embeddings.patch_embeddings.projection._is_hf_initialized = False
        embeddings.initialize_weights()
        model.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
        return model

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Any = None, noise: Any = None, labels: Any = None, paint: bool = False
    ) -> Any:
        """Images (B, C, H, W) and noise (B, L): the patches of the largest noise are hidden.

        ``labels`` is in the signature because the Trainer looks for it there; the loss function
        reads them. With ``paint`` the output also has ``painted`` (B, L, P), the reconstructed
        patches, and ``mask`` (B, L), 1 where hidden.
        """
        out: Any = super().forward(pixel_values=pixel_values, noise=noise)
        target = self.patchify(pixel_values)
        if self.config.norm_pix_loss:
            spread = target.var(-1, keepdim=True)
            target = (target - target.mean(-1, keepdim=True)) / (spread + 1e-6) ** 0.5
        hidden = out.mask[:, :, None]
        pixels = hidden.sum((1, 2)) * target.shape[2]
        missed = ((out.logits - target) ** 2 * hidden).sum((1, 2))
        mean = (target * hidden).sum((1, 2)) / pixels
        whole = ((target - mean[:, None, None]) ** 2 * hidden).sum((1, 2))
        logits = torch.stack([1 - missed / whole.clamp(min=1e-6), missed / pixels], 1)
        more = {"painted": out.logits, "mask": out.mask} if paint else {}
        return ModelOutput(logits=logits, **more)


class MaskCollator(images.Collator):
    """Rows -> a batch with the noise that decides which patches of each image are hidden."""

    patches, visible = 0, 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``pixel_values`` (B, C, H, W), ``noise`` (B, L) and ``labels`` (B, L).

        Labels are 1 for the hidden patches, which the loss is over, and ``IGNORED`` elsewhere.
        """
        batch = super().__call__(rows)
        numbers, epochs = (torch.tensor([row[n] for row in rows]) for n in ("row", "epoch"))
        training = all(row["training"] for row in rows)
        # An evaluation row's epoch is always 0, so that it hides the same patches every time.
        noise = row_random.noise(numbers, self.patches, epochs, self.seed, training=training)
        hidden = noise.argsort(1).argsort(1) >= self.visible
        return batch | {"noise": noise, "labels": torch.where(hidden, 1, IGNORED)}


def patch_loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error over the hidden patches of the optimizer batch.

    Args:
        labels: (B, L), ``IGNORED`` for the visible patches.
    """
    hidden = (labels != IGNORED).sum(1)
    total = (outputs["logits"][:, 1] * hidden).sum()
    return total / (hidden.sum() if num_items_in_batch is None else num_items_in_batch)


class MaskedImageModeling(Task):
    """ViT's masked autoencoder."""

    name = "masked-image-modeling"
    not_exported = "its decoder is only for pretraining; export the classifier that starts from it"
    auto_model = ViTMAEForPreTraining
    auto_processor = AutoImageProcessor
    hub_tag = "image-feature-extraction"

    def build(self, recipe: Recipe) -> Job:
        where, changes = recipe.where("tuning.method"), recipe.augmentation
        if recipe.tuning.method != "full":
            raise UserError(f"{where}: pretraining tunes all weights; leave the method out")
        if augmentation.mixes(changes):
            raise UserError(f"{recipe.name}: mixup and cutmix blend labels; pretraining has none")
        if changes.test_views:
            where = recipe.where("augmentation.test_views")
            raise UserError(f"{where}: test_views average predictions; pretraining has none")
        metrics.refuse_extra(recipe, "masked image modelling")
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, corpus.IMAGES, labelled=False)
        config = _config(recipe, checkpoint)
        processor = images.load_processor(recipe, checkpoint, config)
        side = config.image_size = images.side_of(processor)
        if side % config.patch_size:
            raise UserError(
                f"{recipe.name}: images of {side} pixels do not divide into patches of "
                f"{config.patch_size}; set image_size"
            )
        seed = int(recipe.training.get("seed", 0))
        collator = MaskCollator(processor, config.num_channels, 0, seed, changes)
        collator.patches = (side // config.patch_size) ** 2
        # As transformers' random_masking counts them.
        collator.visible = int(collator.patches * (1 - config.mask_ratio))
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=processor,
            collator=collator,
            splits={n: images.dataset(data, n) for n in ("train", "validation", "test")},
            data=data,
            loss=patch_loss,
            score=lambda logits, _, resamples: scoring.mean(HEADLINE, logits[:, 0], resamples),
            headline=HEADLINE,
            baselines=dict,
            answers=self.answers,
            difference=lambda ours, theirs, _: intervals.difference(
                lambda rows: ours[rows, 0].mean(), lambda rows: theirs[rows, 0].mean(), len(ours)
            ),
            training=images.TRAINING,
            images=lambda: _sheet(model, collator, data),
            notes=configs.describe(recipe, config, checkpoint),
        )

    def answers(self, outputs: numpy.ndarray, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"prediction": float(row[0])} for row in outputs]

    def usage(self, recipe: Recipe, results: dict[str, Any], folder: str) -> str:
        return (
            "A classifier starts from it with `checkpoint:` in a recipe, or in transformers:\n\n"
            "```python\nfrom transformers import ViTForImageClassification\n\n"
            f"model = ViTForImageClassification.from_pretrained({quoted(folder)}, num_labels=10)\n"
            "```"
        )


TASK = MaskedImageModeling()


def _config(recipe: Recipe, checkpoint: sources.Checkpoint) -> Any:
    if checkpoint.name == "new:vit_mae":
        config: Any = ViTMAEConfig()
    elif checkpoint.is_new:
        raise UserError(f"{recipe.where('model.checkpoint')}: pretraining starts from new:vit_mae")
    else:
        config = AutoConfig.from_pretrained(checkpoint.folder)
    if not isinstance(config, ViTMAEConfig):
        raise UserError(f"{checkpoint.name}: is no masked autoencoder but {config.model_type}")
    known = list(config.to_dict())
    for name, value in recipe.model.config.items():
        if name not in known:
            refuse_unknown(name, known, f"{recipe.where('model.config')}: vit_mae config key")
        setattr(config, name, value)
    return config


@torch.no_grad()
def _sheet(model: Any, collator: MaskCollator, data: corpus.Corpus) -> dict[str, bytes]:
    """A sheet of test images, their visible patches, and the reconstruction."""
    model = model.eval()
    chosen = images.evenly(len(data.test), SHEET_ROWS)
    files = data.test["image"].iloc[chosen]
    decoded = [image_decoding.decode(file, collator.channels) for file in files]
    seen = images.pixels(collator.processor, decoded).to(model.device)
    numbers, seed = torch.tensor(chosen), collator.seed
    noise = row_random.noise(numbers, collator.patches, 0, seed, training=False)
    out = model(pixel_values=seen, noise=noise.to(model.device), paint=True)
    patches, painted = model.patchify(seen), out.painted
    if model.config.norm_pix_loss:
        spread = (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
        painted = painted * spread + patches.mean(-1, keepdim=True)
    hidden = out.mask[:, :, None]
    columns = [
        seen,
        model.unpatchify(patches * (1 - hidden)),
        model.unpatchify(patches * (1 - hidden) + painted * hidden),
    ]
    mean, deviation = images.scale(collator.processor)
    grid = torch.stack([column.cpu() * deviation + mean for column in columns])
    caption = "Test images, their visible patches, and the model's reconstruction"
    return {caption: image_decoding.sheet(grid.numpy())}
