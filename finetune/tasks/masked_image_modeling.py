"""Pretraining on images without their labels: a masked autoencoder (He et al. 2022).

Most patches of an image are hidden, and a small decoder paints them from what is left. The encoder
is a ViT, which ``checkpoint: runs/…`` starts a classifier from.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, ViTMAEConfig
from transformers.models.vit_mae import modeling_vit_mae
from transformers.utils.generic import ModelOutput

from finetune.data import augmentation, corpus, image_files, sources
from finetune.errors import UserError, refuse_unknown
from finetune.evaluation import metrics, scoring
from finetune.models import pretrained
from finetune.recipe import Recipe
from finetune.report import figures
from finetune.tasks.image_classification import (
    Collator,
    evenly,
    numbered,
    pixels,
    processor_of,
    scale,
    side_of,
)
from finetune.training.job import Job

AUTO_PROCESSOR = AutoImageProcessor
HEADLINE = "explained_variance"
SHEET_ROWS = 8


class ViTMAEForPreTraining(modeling_vit_mae.ViTMAEForPreTraining):
    """transformers' model with a number for each image, under its name so that it saves as it.

    ``logits`` (B, 2): the share of the hidden patches' variance that is explained (1 is a perfect
    picture, 0 their mean colour), and the loss, a mean over the hidden pixels.
    """

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """Random weights, as the Auto classes make them, and the fixed positions.

        transformers 5.23 leaves these at zero: every hidden patch then looks
        alike to the decoder, and nothing but their mean colour can be learned.
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
        """Images (B, C, H, W) and noise (B, L), whose largest numbers say what is hidden.

        ``labels`` is for the Trainer, which scores only models that take them. With ``paint`` also
        ``painted`` (B, L, P), the patches, and ``mask`` (B, L), 1 where hidden.
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


AUTO_MODEL = ViTMAEForPreTraining


class MaskCollator(Collator):
    """Rows -> a batch with the noise that says which patches of each image are hidden."""

    patches = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``pixel_values`` (B, C, H, W), ``noise`` (B, L), ``labels`` of no meaning."""
        batch = super().__call__(rows)
        numbers = torch.tensor([row["row"] for row in rows])
        # Evaluation hides the same patches every time.
        epoch = self.epoch if bool((numbers >= 0).all()) else 0
        batch["noise"] = augmentation.noise(numbers, self.patches, epoch, self.seed)
        batch["labels"] = torch.zeros(len(rows))
        return batch


def _loss(
    outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    total = outputs["logits"][:, 1].sum()
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def build(recipe: Recipe) -> Job:
    """The recipe's images, processor and autoencoder, ready for the runner.

    Raises:
        UserError: the data, the checkpoint and the recipe do not fit each other.
    """
    where, said = recipe.where("tuning.method"), recipe.augmentation
    if recipe.tuning.method != "full":
        raise UserError(f"{where}: pretraining tunes everything; leave the method out")
    if augmentation.mixes(said):
        raise UserError(f"{recipe.name}: mixup and cutmix blend labels; pretraining has none")
    if said.test_views:
        where = recipe.where("augmentation.test_views")
        raise UserError(f"{where}: test_views average answers; pretraining gives none")
    metrics.refuse_extra(recipe, "masked image modelling")
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    data = corpus.load(recipe.data, corpus.IMAGES, labelled=False)
    config = _config(recipe, checkpoint)
    processor = processor_of(recipe, checkpoint, config)
    side = config.image_size = side_of(processor)
    if side % config.patch_size:
        raise UserError(
            f"{recipe.name}: images of {side} pixels do not divide into patches of "
            f"{config.patch_size}; set image_size"
        )
    seed = int(recipe.training.get("seed", 0))
    collator = MaskCollator(processor, config.num_channels, 0, seed, said)
    collator.patches = (side // config.patch_size) ** 2
    model = pretrained.load(AUTO_MODEL, checkpoint, config, recipe)
    splits = {name: numbered(data, name) for name in ("train", "validation", "test")}
    return Job(
        model=model,
        checkpoint=checkpoint,
        processor=processor,
        collator=collator,
        splits=splits,
        data=data,
        loss=_loss,
        score=lambda logits, labels, resamples: scoring.mean(HEADLINE, logits[:, 0], resamples),
        headline=HEADLINE,
        baselines=dict,
        answers=lambda logits: [{"prediction": float(row[0])} for row in logits],
        training={"remove_unused_columns": False, "include_num_input_tokens_seen": "no"},
        pictures=lambda: _sheet(model, collator, data),
    )


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
    """Test images, what the model sees of them, and what it paints."""
    model = model.eval()
    chosen = evenly(len(data.test), SHEET_ROWS)
    some = data.test["image"].iloc[chosen]
    images = [image_files.decode(image, collator.channels) for image in some]
    seen = pixels(collator.processor, images).to(model.device)
    numbers = -1 - torch.tensor(chosen)
    noise = augmentation.noise(numbers, collator.patches, 0, collator.seed).to(model.device)
    out = model(pixel_values=seen, noise=noise, paint=True)
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
    mean, deviation = scale(collator.processor)
    grid = torch.stack([column.cpu() * deviation + mean for column in columns])
    return {
        "Test images, what is left of them, and what the model paints": figures.sheet(grid.numpy())
    }
