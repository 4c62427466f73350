"""What tasks on images share: the image processor, pixels, the collator, rows to predict."""

from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, PreTrainedConfig, ViTImageProcessorPil

from finetune.data import augmentation, corpus, image_decoding, image_files, sources
from finetune.errors import UserError
from finetune.models import positions
from finetune.recipe import Augmentation, Recipe

# What every job on images needs of TrainingArguments: the collator reads columns that the model
# does not know, and an image has no tokens to count.
TRAINING = {"remove_unused_columns": False, "include_num_input_tokens_seen": "no"}
THUMBNAIL = 192


class Collator:
    """Rows -> a batch: decodes, resizes as the processor does, augments training images.

    Runs in the data loader's workers. ``row`` is a row's number in its split, ``training`` whether
    that is the training split, and ``epoch`` that of the training: together they key the random
    draws. ``view`` numbers the augmented views of an evaluation row from 1; 0 is the image itself.
    """

    def __init__(
        self, processor: Any, channels: int, classes: int, seed: int, changes: Augmentation
    ) -> None:
        self.processor, self.channels, self.classes = processor, channels, classes
        self.seed, self.changes = seed, changes

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows (B) -> ``pixel_values`` (B, C, H, W) float, and ``labels`` where rows have them."""
        numbers, views, epochs = (
            torch.tensor([row[name] for row in rows]) for name in ("row", "view", "epoch")
        )
        training = all(row["training"] for row in rows)
        images = [image_decoding.decode(row["image"], self.channels) for row in rows]
        batch = {}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        mixes = augmentation.mixes(self.changes)
        if not (augmentation.active(self.changes) or mixes if training else views.any()):
            return {"pixel_values": pixels(self.processor, images), **batch}
        plain = pixels(self.processor, images, normalize=False)
        epoch = epochs if training else views
        values = augmentation.augment(
            plain, numbers, epoch, self.seed, self.changes, training=training
        )
        if not training:
            values = torch.where(views[:, None, None, None] > 0, values, plain)
        elif mixes:
            values, batch["labels"] = augmentation.mix(
                *(values, batch["labels"], self.classes, numbers),
                *(epochs, self.seed, self.changes),
            )
        return {"pixel_values": normalized(self.processor, values), **batch}


def pixels(processor: Any, images: list[Any], normalize: bool = True) -> torch.Tensor:
    """PIL images (B) -> (B, C, H, W) float, as the processor makes them, or still in [0, 1]."""
    arrays = [numpy.asarray(image) for image in images]
    arrays = [array if array.ndim == 3 else array[:, :, None] for array in arrays]
    # Not passed at all where it is on: the processor knows whether its model wants it.
    options = {} if normalize else {"do_normalize": False}
    batch = processor(arrays, return_tensors="pt", input_data_format="channels_last", **options)
    return batch["pixel_values"]


def normalized(processor: Any, values: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [0, 1] -> the same normalised as the processor does."""
    if not processor.do_normalize:
        return values
    mean, deviation = scale(processor)
    return (values - mean) / deviation


def scale(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean and deviation (C, 1, 1) that a processor normalises by."""
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return mean[:, None, None], deviation[:, None, None]


def dataset(data: corpus.Corpus, split: str, views: int = 0) -> Dataset:
    """Returns a split as ``Collator`` reads it; labels only where the rows have them.

    With test-time augmentation each row is repeated for each of its augmented ``views``.
    """
    frame = getattr(data, split)
    numbers = [view_key(d) for d in frame["digest"]] if views else list(range(len(frame)))
    columns = {"image": frame["image"].tolist(), "row": numbers}
    if "label" in frame:
        columns["labels"] = frame["label"].tolist()
    columns |= {"training": [split == "train"] * len(frame), "length": [1] * len(frame)}
    columns["epoch"] = [0] * len(frame)
    if views:
        columns = {
            k: [v for v in column for _ in range(1 + views)] for k, column in columns.items()
        }
    return Dataset.from_dict({**columns, "view": list(range(1 + views)) * len(frame)})


def view_key(digest: str) -> int:
    """Returns a row number that follows from an image's digest.

    It keys the views of test-time augmentation, so that an image has the same ones in every file.
    """
    return int(digest[:15], 16)


def load_processor(recipe: Recipe, checkpoint: sources.Checkpoint, config: PreTrainedConfig) -> Any:
    """Returns the checkpoint's image processor, set to the recipe's ``image_size``.

    Raises:
        UserError: the checkpoint has none.
    """
    side = recipe.model.image_size
    if checkpoint.is_new:
        side = side or positions.side(config) or 224
        half = [0.5] * getattr(config, "num_channels", 3)
        return ViTImageProcessorPil(
            size={"height": side, "width": side}, image_mean=half, image_std=half
        )
    folder, _ = checkpoint.processor
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            f"{checkpoint.name}: has no preprocessor_config.json, so the size and scale of its "
            "images are unknown; take a checkpoint that has one"
        )
    # PIL, because torchvision is not among our dependencies.
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    if side:
        square = {"height": side, "width": side}
        processor.size = square if "height" in processor.size else {"shortest_edge": side}
        if getattr(processor, "crop_size", None):
            processor.crop_size = square
    return processor


def side_of(processor: Any) -> int:
    """Returns the side in pixels of the images that a processor makes."""
    blank = numpy.zeros((32, 32, len(processor.image_mean)), numpy.uint8)
    return pixels(processor, [blank]).shape[-1]


def evenly(count: int, some: int) -> list[int]:
    """Returns at most ``some`` of ``count`` row numbers, evenly spaced."""
    return [int(i) for i in numpy.linspace(0, count - 1, min(some, count))]


def thumbnail(image: str | bytes) -> bytes:
    """Returns a small PNG of an image file; nothing where the file no longer exists."""
    try:
        small = image_decoding.decode(image)
    except image_decoding.Unusable:
        return b""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return image_decoding.png(small)


def read_rows(given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns images to label; an empty cell of a table keeps its place.

    Args:
        given: paths of image files.
        file: a folder of images, or a table with the recipe's image column, instead of ``given``.

    Raises:
        UserError: there is none, a file does not exist, or the table has no such column.
    """
    if file and Path(file).is_dir():
        inside = sorted(Path(file).rglob("*"))
        paths: list[Any] = [str(p) for p in inside if p.suffix.lower() in image_files.SUFFIXES]
    elif file:
        table = image_files.read(file, recipe.data, labelled=False)
        if recipe.data.image not in table.rows.columns:
            known = ", ".join(str(c) for c in table.rows.columns)
            raise UserError(
                f"{file}: no column {recipe.data.image!r}; it has {known}; name another with "
                "--image COLUMN"
            )
        paths = table.rows[recipe.data.image].tolist()
    else:
        paths = given
    if not any(paths):
        raise UserError("there is no image to label")
    for path in paths:
        if path and isinstance(path, str) and not Path(path).is_file():
            raise UserError(f"{path}: no such image file")
    return [{"image": path} for path in paths]
