"""Image classification: one label, several labels or a number for an image."""

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification

from finetune.data import augmentation, corpus, image_decoding, sources
from finetune.errors import UserError
from finetune.evaluation import baselines
from finetune.models import configs, convnets, positions, pretrained, pruning, tuning
from finetune.recipe import Recipe
from finetune.tasks import images
from finetune.tasks.classification import Classifier, example, scored_by
from finetune.tasks.usage import Example
from finetune.training.job import Job

convnets.register()
# Rows and side of the images that the baselines on pixels learn from: seconds, whatever the data.
BASELINE_ROWS, BASELINE_SIDE = 5000, 28
SHEET_ROWS, SHEET_EPOCHS = 8, 9


class ImageClassification(Classifier):
    """ViT and its relatives, and convolutional nets, with a classification head."""

    name = "image-classification"
    auto_model = AutoModelForImageClassification
    content = corpus.IMAGES
    auto_processor = AutoImageProcessor

    def build(self, recipe: Recipe) -> Job:
        self.check(recipe)
        tuning.check(recipe)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, corpus.IMAGES)
        scored = scored_by(data, recipe)
        decides, notes = scored.pop("collect"), scored.pop("notes")
        changes = recipe.augmentation
        if augmentation.mixes(changes) and data.problem_type != "single_label_classification":
            raise UserError(
                f"{recipe.name}: mixup and cutmix blend classes; the rows have other labels"
            )
        if changes.test_views and not augmentation.active(changes):
            raise UserError(
                f"{recipe.where('augmentation.test_views')}: test_views needs an augmentation that "
                "changes a view, for example `translate: 0.1`; mixup and cutmix do not"
            )
        data.report["test_views"] = changes.test_views
        config = configs.labelled_config(recipe, checkpoint, data)
        processor = images.load_processor(recipe, checkpoint, config)
        channels = getattr(config, "num_channels", 3)
        if positions.side(config):
            config.image_size = images.side_of(processor)

        seed = int(recipe.training.get("seed", 0))
        collator = images.Collator(processor, channels, len(data.label_names), seed, changes)
        splits = {name: images.dataset(data, name) for name in ("train", "validation")}
        splits["test"] = images.dataset(data, "test", changes.test_views)
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = pruning.shrink(model, recipe, splits["train"], collator, scored["loss"])
        return Job(
            model=tuning.apply(model, recipe, checkpoint),
            checkpoint=checkpoint,
            processor=processor,
            collator=collator,
            splits=splits,
            data=data,
            **scored,
            baselines=lambda: _baselines(data),
            answers=self.answers,
            collect=lambda logits, labels, split: decides(
                *_mean_over_views(logits, labels, changes.test_views if split == "test" else 0),
                split,
            ),
            images=lambda: _sheet(collator, splits["train"]),
            notes=notes
            + configs.describe_head(checkpoint, data)
            + configs.describe(recipe, config, checkpoint),
            training=images.TRAINING,
        )

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
        return images.read_rows(given, file, recipe)

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"image": bytes}

    def batches(
        self, rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        """Decodes images as they are needed; with ``test_views``, a further batch for each view.

        Raises:
            UserError: an image cannot be decoded.
        """
        channels, changes = len(processor.image_mean), recipe.augmentation
        seed = int(recipe.training.get("seed", 0))
        for start in range(0, len(rows), size):
            decoded = []
            for row in rows[start : start + size]:
                try:
                    decoded.append(image_decoding.decode(row["image"], channels))
                except image_decoding.Unusable as reason:
                    name = row["image"] if isinstance(row["image"], str) else "an image"
                    raise UserError(f"{name}: {reason}") from None
            numbers = numpy.arange(start, start + len(decoded))
            yield numbers, {"pixel_values": images.pixels(processor, decoded)}
            if not changes.test_views:
                continue
            digests = [
                image_decoding.inspect(row["image"])[0] for row in rows[start : start + size]
            ]
            keys = torch.tensor([images.view_key(digest) for digest in digests])
            plain = images.pixels(processor, decoded, normalize=False)
            for view in range(1, 1 + changes.test_views):
                values = augmentation.augment(plain, keys, view, seed, changes, training=False)
                yield numbers, {"pixel_values": images.normalized(processor, values)}

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        return example(recipe.data.problem_type, "classify", ['"image.png"'])

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        taken = "Input: `pixel_values` (B, C, H, W), as the image processor makes them."
        return [taken, *super().exported(recipe, results)]

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image": images.thumbnail(row["image"])}


TASK = ImageClassification()


def _mean_over_views(
    logits: numpy.ndarray, labels: numpy.ndarray, views: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Each row's mean logits (N, K) over the image and its augmented views; labels once a row."""
    each = 1 + views
    return logits.reshape(len(logits) // each, each, -1).mean(1), labels[::each]


def _sheet(collator: images.Collator, rows: Dataset) -> dict[str, bytes]:
    """A sheet of some training images and how the first epochs augment them, if they do."""
    if not augmentation.active(collator.changes):
        return {}
    # Spread over the rows, which are often sorted by class.
    chosen = images.evenly(len(rows), SHEET_ROWS)
    decoded = [image_decoding.decode(rows[i]["image"], collator.channels) for i in chosen]
    plain = images.pixels(collator.processor, decoded, normalize=False)
    numbers, seed, changes = torch.tensor(chosen), collator.seed, collator.changes
    changed = [
        augmentation.augment(plain, numbers, epoch, seed, changes, training=True)
        for epoch in range(SHEET_EPOCHS)
    ]
    caption = f"Training images, and how each of {SHEET_EPOCHS} epochs augments them"
    return {caption: image_decoding.sheet(torch.stack([plain, *changed], 1).numpy())}


def _baselines(data: corpus.Corpus) -> dict[str, numpy.ndarray]:
    def features(files: Any) -> numpy.ndarray:
        decoded = (image_decoding.decode(file, 1) for file in files)
        small = [image.resize((BASELINE_SIDE, BASELINE_SIDE)) for image in decoded]
        return numpy.stack([numpy.asarray(image).ravel() for image in small]) / 255

    some = data.train
    if len(some) > BASELINE_ROWS:
        some = some.sample(BASELINE_ROWS, random_state=0)
    labels = numpy.array(some["label"].tolist())
    return baselines.for_images(data, features(some["image"]), labels, features(data.test["image"]))
