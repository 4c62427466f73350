"""Reads image files and their labels, and writes PNG files.

- Decoding: every kind of file becomes 8-bit RGB (or grey), upright, on white where it is
  transparent. The same file always gives the same pixels.
- Tables: a folder with a folder for each class, a table of paths, or Parquet with the files inside.
"""

import hashlib
import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas

from finetune.data import readers, sources, table_files
from finetune.errors import UserError
from finetune.recipe import Data

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# PIL reads dozens of other kinds, some of them by running programs.
KINDS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"]
MOST_MEGAPIXELS = 40
# Names of modes that become RGB, for the report; an alpha channel is counted by itself.
MODES = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette"}
# Up to this side in pixels the images of a sheet are enlarged.
MOST_SIDE = 84
# PIL's warnings name no file. Errors are raised here, and what was fixed is counted.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unusable(Exception):  # noqa: N818 - no error of the program, but of the image
    """Why an image cannot be used, as words to put after its name."""


# --- decoding --------------------------------------------------------------------------------


def _require_pillow() -> None:
    try:
        from PIL import Image  # noqa: F401
    except ImportError:
        raise UserError(
            "images need pillow and kornia: pip install 'finetune-recipes[vision]'"
        ) from None


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Converts 16-bit grey to 8-bit grey. PIL's own conversion clips in some versions only."""
    from PIL import Image

    values = numpy.asarray(image).astype(numpy.uint16)
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535
    return Image.fromarray((values >> 8).astype(numpy.uint8))


def _normalised(image: "Image.Image", deep: bool, fixed: list[str]) -> "Image.Image":
    """Converts a decoded image to RGB; what was changed is appended to ``fixed``."""
    from PIL import Image

    mode = image.mode.partition(";")[0]
    if mode not in {"RGB", "RGBA", "RGBX", "RGBa"}:
        fixed.append(f"{MODES.get(mode, mode)} to RGB")
    if deep:
        fixed.append("16-bit scaled")
    clear = image.has_transparency_data
    if clear:
        fixed.append("alpha on white")
    if mode == "I" and deep:
        image = _eight_bits(image)
    elif mode in {"I", "F"}:
        raise Unusable("has pixels of 32 bits or with a sign, whose range is unknown; save 8 or 16")
    elif clear:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _opened(stream: Any) -> tuple["Image.Image", list[str]]:
    """Returns the image in a file as RGB, and what was normalized."""
    from PIL import ExifTags, Image, ImageOps

    if not stream.read(1):
        raise Unusable("is empty (0 bytes)")
    image = Image.open(stream, formats=KINDS)
    megapixels = image.width * image.height / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise Unusable(f"has {math.ceil(megapixels)} megapixels, {MOST_MEGAPIXELS} are the most")
    fixed = []
    # A photo with a preview (MPO) has several frames, too. PIL's single-frame kinds have no such
    # attribute.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        fixed.append("first frame of an animation")
    raw = repr(image.tile)
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        fixed.append("EXIF rotation")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _normalised(image, ";16" in raw and ";16S" not in raw, fixed), fixed


def _decoded(file: str | bytes) -> tuple["Image.Image", list[str]]:
    _require_pillow()
    from PIL import Image, UnidentifiedImageError

    try:
        with io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as stream:
            return _opened(stream)
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("does not exist") from None
    except UnidentifiedImageError:
        read = ", ".join(KINDS)
        raise Unusable(f"is not an image, or its header is broken ({read} are read)") from None
    except Image.DecompressionBombError:
        least = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise Unusable(f"has over {least} megapixels, {MOST_MEGAPIXELS} are the most") from None
    except Exception as error:
        # For a broken file PIL's decoders raise anything: OSError, struct.error, IndexError...
        words = " ".join(str(error).split()) or type(error).__name__
        cut = "truncated" in words.lower()
        raise Unusable("is cut short" if cut else f"cannot be decoded: {words}") from None


def decode(file: str | bytes, channels: int = 3) -> "Image.Image":
    """Decodes an image file.

    The result is the first frame, rotated by its EXIF orientation, on white where it is
    transparent, with 8 bits a channel (16 are divided by 256).

    Args:
        file: a path, or the encoded file itself.
        channels: 3 for mode RGB, 1 for mode L.

    Raises:
        Unusable: missing, empty, not an image, broken, or above ``MOST_MEGAPIXELS``, which is
            checked in the header, before anything is decoded.
        UserError: pillow is not installed.
    """
    image, _ = _decoded(file)
    return image.convert("L") if channels == 1 else image


def inspect(file: str | bytes) -> tuple[str, list[str]]:
    """Returns the sha256 of an image's size and decoded pixels, and what was normalized.

    Two files with the same digest show the same image.

    Raises:
        Unusable, UserError: as ``decode`` does.
    """
    image, fixed = _decoded(file)
    digest = hashlib.sha256(f"{image.width}x{image.height}|".encode())
    digest.update(image.tobytes())
    return digest.hexdigest(), fixed


# --- encoding --------------------------------------------------------------------------------


def png(image: "Image.Image") -> bytes:
    """Encodes an image as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def sheet(grid: numpy.ndarray, gap: int = 2) -> bytes:
    """Encodes images in rows and columns, on white, as one PNG file; small ones are enlarged.

    Args:
        grid: (R, C, channels, H, W) float in [0, 1], 1 or 3 channels.
        gap: pixels between the images.
    """
    from PIL import Image

    down, across, channels, height, width = grid.shape
    zoom = max(1, MOST_SIDE // max(height, width))
    cells = numpy.round(grid.clip(0, 1) * 255).astype(numpy.uint8)
    cells = cells.repeat(zoom, -1).repeat(zoom, -2).repeat(3 // channels, 2)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    whole = numpy.full((down * step_y - gap, across * step_x - gap, 3), 255, numpy.uint8)
    for y in range(down):
        for x in range(across):
            top, left = y * step_y, x * step_x
            place = whole[top : top + height * zoom, left : left + width * zoom]
            place[:] = cells[y, x].transpose(1, 2, 0)
    return png(Image.fromarray(whole))


# --- tables ----------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """Returns the image files below a folder, without hidden ones."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _class_folders(path: Path, data: Data, labelled: bool) -> readers.Table:
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len({split for split, _ in readers.split_files(path)}) > 1:
        raise UserError(f"{path}: has folders of several splits; give it as `dataset:`")
    loose = [file for file in _files(path) if file.parent == path]
    if loose and not labelled:
        found = _files(path)
        names = [file.relative_to(path).as_posix() for file in found]
        paths = [str(file) for file in found]
        return readers.Table(
            pandas.DataFrame({data.image: paths}, index=names, dtype=object), str(path)
        )
    if not folders:
        what = "images but no class folders" if loose else "no images"
        raise UserError(f"{path}: has {what}; make a folder for each class, {path}/NAME/")
    if loose:
        raise UserError(f"{loose[0]}: is not in a class folder; move it into one")
    rows, places = [], []
    for folder in folders:
        inside = _files(folder)
        if not inside:
            raise UserError(f"{folder}: a class folder without images; add some, or remove it")
        rows += [(str(file), folder.name) for file in inside]
        places += [file.relative_to(path).as_posix() for file in inside]
    label = data.label if isinstance(data.label, str) else "label"
    frame = pandas.DataFrame(rows, columns=[data.image, label], index=places, dtype=object)
    return readers.Table(frame, str(path))


def _unpack(table: readers.Table, folder: Path, data: Data) -> readers.Table:
    """Makes every cell of the image column a path, an encoded file, or None."""
    if data.image not in table.rows.columns:
        return table

    def cell(line: object, value: Any) -> str | bytes | None:
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str) and value.strip():
            return str(folder / value)
        if value is None or isinstance(value, str | bytes):
            return value
        raise UserError(
            f"{table.at(line)}: {data.image} is {type(value).__name__}; an image is a path, or "
            "the bytes of its file"
        )

    cells = [cell(line, value) for line, value in table.rows[data.image].items()]
    table.rows[data.image] = pandas.Series(cells, index=table.rows.index, dtype=object)
    return table


def read(given: str | Path | list[Any], data: Data, labelled: bool = True) -> readers.Table:
    """Reads a folder of class folders, a table of paths, or Parquet with the files inside.

    Without labels, a folder of images needs no class folders.

    The image column has a path, the bytes of a file, or None; paths of a table are relative to its
    folder. Rows of class folders have the file as their index.

    Raises:
        UserError: as ``readers.read_table`` does; images outside class folders, a class folder
            without images.
    """
    paths = table_files.expand(given)
    path = paths[0]
    if len({p.parent for p in paths}) > 1:
        raise UserError(f"{given}: paths of images are relative to one folder; put the files in it")
    if path.is_dir():
        tables = [f for f in table_files.inside(path) if table_files.is_table(f)]
        if not tables:
            return _class_folders(path, data, labelled)
        if _files(path):
            raise UserError(
                f"{path}: has both {tables[0].name} and images; give the table itself, or move it "
                "elsewhere"
            )
    table = readers.read_table(given, data)
    return _unpack(table, path if path.is_dir() else path.parent, data)


def _digits(name: str, data: Data) -> readers.Table:
    """Reads 5,000 of MNIST's digits, 28 x 28 pixels, each as a PNG file."""
    _require_pillow()
    from PIL import Image

    file = sources.embedded(name.removeprefix("embedded:"), sources.EMBEDDED_DATASETS, "dataset")
    values = pandas.read_csv(file, header=None).to_numpy(numpy.uint8)
    files = []
    for pixels in values[:, :-1].reshape(-1, 28, 28):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    rows = list(zip(files, values[:, -1].tolist(), strict=True))
    lines = range(1, len(values) + 1)
    label = data.label if isinstance(data.label, str) else "label"
    frame = pandas.DataFrame(rows, columns=[data.image, label], index=lines, dtype=object)
    return readers.Table(frame, name, label_names=[str(digit) for digit in range(10)])


def dataset(
    name: str, data: Data, labelled: bool = True
) -> tuple[dict[str, readers.Table], str | None]:
    """Reads all splits of a named dataset of images; also returns the hub commit, if any.

    Raises:
        UserError: it cannot be found or read.
    """
    if name == "embedded:mnist":
        return {"train": _digits(name, data)}, None
    tables, commit = readers.dataset(data, lambda files, data: read(files, data, labelled))
    if commit:
        tables = {split: _unpack(table, Path(), data) for split, table in tables.items()}
    return tables, commit
