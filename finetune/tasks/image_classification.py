"""Image classification: one label, several labels or a number for an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    ViTImageProcessorPil,
)

from finetune.data import augmentation, corpus, image_files, readers, sources
from finetune.errors import UserError
from finetune.evaluation import baselines, extra_metrics, metrics
from finetune.models import convnets, positions, pretrained, tuning
from finetune.recipe import Augmentation, Recipe
from finetune.report import figures
from finetune.tasks.classification import answers, head_notes, labelled_config, scorer
from finetune.training.job import Job
from finetune.training.losses import classification_loss

convnets.register()
AUTO_MODEL = AutoModelForImageClassification
AUTO_PROCESSOR = AutoImageProcessor
# Rows and side of the images that the baselines on pixels learn from: seconds, whatever the data.
BASELINE_ROWS, BASELINE_SIDE = 5000, 28
SHEET_ROWS, SHEET_EPOCHS = 8, 9


class Collator:
    """Rows -> a batch: decodes, resizes as the processor says, changes training images.

    Runs in the data loader's workers. ``row`` numbers the training rows from 0 up and the others
    from -1 down, ``view`` the changed views of the others from 1 up; ``set_epoch`` is called before
    the workers of an epoch start.
    """

    def __init__(
        self, processor: Any, channels: int, classes: int, seed: int, said: Augmentation
    ) -> None:
        self.processor, self.channels, self.classes = processor, channels, classes
        self.seed, self.said, self.epoch = seed, said, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the changes of another epoch from now on."""
        self.epoch = epoch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``pixel_values`` (B, C, H, W) float and ``labels``."""
        numbers, views = (torch.tensor([row[name] for row in rows]) for name in ("row", "view"))
        labels = torch.tensor([row["labels"] for row in rows])
        images = [image_files.decode(row["image"], self.channels) for row in rows]
        learns = bool((numbers >= 0).all())
        mixes = augmentation.mixes(self.said)
        if not (augmentation.active(self.said) or mixes if learns else views.any()):
            return {"pixel_values": pixels(self.processor, images), "labels": labels}
        plain = pixels(self.processor, images, normalize=False)
        epoch = self.epoch if learns else views
        values = augmentation.augment(plain, numbers, epoch, self.seed, self.said)
        if not learns:
            values = torch.where(views[:, None, None, None] > 0, values, plain)
        elif mixes:
            values, labels = augmentation.mix(
                values, labels, self.classes, numbers, self.epoch, self.seed, self.said
            )
        return {"pixel_values": normalized(self.processor, values), "labels": labels}


def pixels(processor: Any, images: list[Any], normalize: bool = True) -> torch.Tensor:
    """PIL images (B) -> (B, C, H, W) float, as the processor makes them, or still in [0, 1]."""
    arrays = [numpy.asarray(image) for image in images]
    arrays = [array if array.ndim == 3 else array[:, :, None] for array in arrays]
    # Not said at all where it is on: the processor knows whether its model wants it.
    options = {} if normalize else {"do_normalize": False}
    made = processor(arrays, return_tensors="pt", input_data_format="channels_last", **options)
    return made["pixel_values"]


def normalized(processor: Any, values: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [0, 1] as ``pixels`` gives them otherwise."""
    if not processor.do_normalize:
        return values
    mean, deviation = scale(processor)
    return (values - mean) / deviation


def scale(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and deviation (C, 1, 1) that a processor normalises by."""
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return mean[:, None, None], deviation[:, None, None]


def build(recipe: Recipe) -> Job:
    """The recipe's data, image processor and model, ready for the runner.

    Raises:
        UserError: the data, the checkpoint and the recipe do not fit each other.
    """
    tuning.check(recipe)
    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    data = corpus.load(recipe.data, corpus.IMAGES)
    extra = extra_metrics.load(
        recipe.metrics, data.problem_type, len(data.label_names), recipe.where("metrics")
    )
    said = recipe.augmentation
    if augmentation.mixes(said) and data.problem_type != "single_label_classification":
        raise UserError(
            f"{recipe.name}: mixup and cutmix blend classes; the rows have other labels"
        )
    if said.test_views and not augmentation.active(said):
        raise UserError(
            f"{recipe.where('augmentation.test_views')}: test_views needs something that changes "
            "a view, for example `translate: 0.1`; mixup and cutmix do not"
        )
    data.report["test_views"] = said.test_views
    config = labelled_config(recipe, checkpoint, data)
    processor = processor_of(recipe, checkpoint, config)
    channels = getattr(config, "num_channels", 3)
    if positions.side(config):
        config.image_size = side_of(processor)

    model = pretrained.load(AUTO_MODEL, checkpoint, config, recipe)
    smoothing = float(recipe.training.get("label_smoothing_factor", 0.0))
    seed = int(recipe.training.get("seed", 0))
    collator = Collator(processor, channels, len(data.label_names), seed, said)
    splits = {name: numbered(data, name) for name in ("train", "validation")}
    splits["test"] = numbered(data, "test", said.test_views)
    return Job(
        model=tuning.apply(model, recipe, checkpoint),
        checkpoint=checkpoint,
        processor=processor,
        collator=collator,
        splits=splits,
        data=data,
        loss=classification_loss(data.problem_type, smoothing),
        score=scorer(data, extra),
        headline=metrics.HEADLINE[data.problem_type],
        extra_metrics={name: each.spec for name, each in extra.items()},
        baselines=lambda: _baselines(data),
        answers=lambda logits: answers(logits, data.problem_type, data.label_names),
        pictures=lambda: _sheet(collator, splits["train"]),
        notes=head_notes(checkpoint, data),
        # The collator reads columns that the model does not know; an image has no tokens to count.
        training={"remove_unused_columns": False, "include_num_input_tokens_seen": "no"},
    )


def numbered(data: corpus.Corpus, split: str, views: int = 0) -> Dataset:
    """A split's images and labels with the numbers that ``Collator`` reads.

    Each row stands once, and behind it as often again as it has changed ``views``. Labels that
    nobody gave are 0.
    """
    frame = getattr(data, split)
    rows = range(len(frame))
    numbers = rows if split == "train" else [-1 - i for i in rows]
    if views:
        numbers = [own_number(digest) for digest in frame["digest"]]
    labels = frame["label"].tolist() if "label" in frame else [0] * len(frame)
    columns = {"image": frame["image"].tolist(), "labels": labels}
    columns |= {"row": list(numbers), "length": [1] * len(frame)}
    if views:
        columns = {
            k: [v for v in column for _ in range(1 + views)] for k, column in columns.items()
        }
    return Dataset.from_dict({**columns, "view": list(range(1 + views)) * len(frame)})


def own_number(digest: str) -> int:
    """A row number, below 0, that follows from an image's digest.

    Views are drawn by it, so that an image has the same ones wherever it stands.
    """
    return -1 - int(digest[:15], 16)


def processor_of(recipe: Recipe, checkpoint: sources.Checkpoint, config: PreTrainedConfig) -> Any:
    """The checkpoint's image processor, set to the recipe's ``image_size``."""
    side = recipe.model.image_size
    if checkpoint.is_new:
        side = side or positions.side(config) or 224
        half = [0.5] * getattr(config, "num_channels", 3)
        return ViTImageProcessorPil(
            size={"height": side, "width": side}, image_mean=half, image_std=half
        )
    if not (checkpoint.folder / "preprocessor_config.json").is_file():
        raise UserError(
            f"{checkpoint.name}: has no preprocessor_config.json; how it wants its images is not "
            "to be guessed"
        )
    # PIL, because torchvision is not among our dependencies.
    processor: Any = AutoImageProcessor.from_pretrained(checkpoint.folder, backend="pil")
    if side:
        square = {"height": side, "width": side}
        processor.size = square if "height" in processor.size else {"shortest_edge": side}
        if getattr(processor, "crop_size", None):
            processor.crop_size = square
    return processor


def side_of(processor: Any) -> int:
    """The side in pixels of the images that a processor makes."""
    made = pixels(processor, [numpy.zeros((32, 32, len(processor.image_mean)), numpy.uint8)])
    return made.shape[-1]


def _sheet(collator: Collator, rows: Dataset) -> dict[str, bytes]:
    """Some training images as they are, and as the first epochs see them, if there are as many."""
    if not augmentation.active(collator.said):
        return {}
    # From all over the rows, which often stand class by class.
    chosen = evenly(len(rows), SHEET_ROWS)
    images = [image_files.decode(rows[i]["image"], collator.channels) for i in chosen]
    plain = pixels(collator.processor, images, normalize=False)
    changed = [
        augmentation.augment(plain, torch.tensor(chosen), epoch, collator.seed, collator.said)
        for epoch in range(SHEET_EPOCHS)
    ]
    grid = torch.stack([plain, *changed], 1)
    caption = f"Training images, and how each of {SHEET_EPOCHS} epochs would change them"
    return {caption: figures.sheet(grid.numpy())}


def evenly(count: int, some: int) -> list[int]:
    """At most ``some`` of ``count`` row numbers, evenly apart."""
    return [int(i) for i in numpy.linspace(0, count - 1, min(some, count))]


def _baselines(data: corpus.Corpus) -> dict[str, numpy.ndarray]:
    def features(images: Any) -> numpy.ndarray:
        decoded = (image_files.decode(image, 1) for image in images)
        small = [image.resize((BASELINE_SIDE, BASELINE_SIDE)) for image in decoded]
        return numpy.stack([numpy.asarray(image).ravel() for image in small]) / 255

    some = data.train
    if len(some) > BASELINE_ROWS:
        some = some.sample(BASELINE_ROWS, random_state=0)
    labels = numpy.array(some["label"].tolist())
    return baselines.for_images(data, features(some["image"]), labels, features(data.test["image"]))


def read_rows(given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Images to label.

    Args:
        given: paths of image files.
        file: a folder of them, or a table with the recipe's image column, instead.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if file and Path(file).is_dir():
        inside = sorted(Path(file).rglob("*"))
        paths: list[Any] = [str(p) for p in inside if p.suffix.lower() in image_files.SUFFIXES]
    elif file:
        (cells,) = readers.read_columns(Path(file), [recipe.data.image], recipe.data.encoding)
        paths = [str(Path(file).parent / cell) for cell in cells]
    else:
        paths = given
    if not paths:
        raise UserError("there is no image to label")
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such image file")
    return [{"image": path} for path in paths]


def batches(
    rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
    """Row numbers and model inputs of batches, decoded as they are needed.

    With ``test_views`` each row comes once as it is, and in a batch more for each view.

    Raises:
        UserError: an image cannot be decoded.
    """
    channels, said = len(processor.image_mean), recipe.augmentation
    seed = int(recipe.training.get("seed", 0))
    for start in range(0, len(rows), size):
        images = []
        for row in rows[start : start + size]:
            try:
                images.append(image_files.decode(row["image"], channels))
            except image_files.Unusable as reason:
                raise UserError(f"{row['image']}: {reason}") from None
        places = numpy.arange(start, start + len(images))
        yield places, {"pixel_values": pixels(processor, images)}
        if not said.test_views:
            continue
        digests = [image_files.inspect(row["image"])[0] for row in rows[start : start + size]]
        numbers = torch.tensor([own_number(digest) for digest in digests])
        plain = pixels(processor, images, normalize=False)
        for view in range(1, 1 + said.test_views):
            values = augmentation.augment(plain, numbers, view, seed, said)
            yield places, {"pixel_values": normalized(processor, values)}
