"""Images that look alike, are blank or of an odd size are found."""

import io
from pathlib import Path

import numpy
import pandas
import pytest
from PIL import Image

from finetune.checks import images
from finetune.checks.finding import Severity


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """An image of smooth random colours."""
    small = numpy.random.default_rng(seed).integers(0, 256, (6, 6, 3), numpy.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def frame(folder: Path, pictures: list[Image.Image]) -> pandas.DataFrame:
    paths = []
    for i, image in enumerate(pictures):
        paths.append(str(folder / f"{i}.png"))
        image.save(paths[-1])
    ids = [f"train-{i}" for i in range(len(paths))]
    digests = [str(hash(image.tobytes())) for image in pictures]
    return pandas.DataFrame({"id": ids, "digest": digests, "image": paths})


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        compressed,
        lambda image: image.resize((96, 96)),
        lambda image: image.point(lambda value: value * 0.8),
    ],
)
def test_a_copy_of_other_quality_size_or_brightness_is_found(tmp_path: Path, change) -> None:
    pictures = [picture(i) for i in range(20)]
    rows = frame(tmp_path, [*pictures, change(pictures[4])])
    assert images.similar(images.look(rows), rows["digest"].to_list()) == [(4, 20)]


def test_other_images_and_exact_copies_are_not(tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(20)]
    rows = frame(tmp_path, [*pictures, pictures[4]])
    assert images.similar(images.look(rows), rows["digest"].to_list()) == []


def test_images_of_one_colour_are_found(tmp_path: Path) -> None:
    rows = frame(tmp_path, [picture(0), Image.new("RGB", (48, 48), "navy"), picture(1)])
    (found,) = images.blank(rows, images.look(rows))
    assert (found.count, found.severity) == (1, Severity.WARNING)
    assert found.examples[0].row == "train-1"
    assert images.blank(rows.iloc[[0, 2]], images.look(rows.iloc[[0, 2]])) == []


def test_sizes_are_described_and_odd_ones_found(tmp_path: Path) -> None:
    rows = frame(tmp_path, [picture(0), picture(1), picture(2, (100, 40))])
    looks = images.look(rows)
    assert images.describe(looks) == "48 x 48 to 100 x 40 pixels, typically 48 x 48"
    (long,) = images.sizes(rows, looks, None)
    assert (long.count, long.examples[0].note) == (1, "100 x 40")
    small, _ = images.sizes(rows, looks, 64)
    assert small.count == 2
    assert images.describe(images.look(rows[:2])) == "48 x 48 pixels, all"
