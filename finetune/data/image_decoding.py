"""Decodes image files, and encodes PNG files.

Every kind of file becomes 8-bit RGB (or grey), upright, on white where it is transparent. The same
file always gives the same pixels.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from finetune.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

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


def require_pillow() -> None:
    """Checks that pillow is installed.

    Raises:
        UserError: it is not.
    """
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


def _read(file: str | bytes, read: Callable[[Any], Any]) -> Any:
    """Returns what ``read`` makes of a file; whatever PIL raises becomes ``Unusable``."""
    require_pillow()
    from PIL import Image, UnidentifiedImageError

    try:
        with io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as stream:
            return read(stream)
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("does not exist") from None
    except UnidentifiedImageError:
        kinds = ", ".join(KINDS)
        raise Unusable(f"is not an image, or its header is broken ({kinds} are read)") from None
    except Image.DecompressionBombError:
        least = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise Unusable(f"has over {least} megapixels, {MOST_MEGAPIXELS} are the most") from None
    except Exception as error:
        # For a broken file PIL's decoders raise anything: OSError, struct.error, IndexError...
        words = " ".join(str(error).split()) or type(error).__name__
        cut = "truncated" in words.lower()
        raise Unusable("is cut short" if cut else f"cannot be decoded: {words}") from None


def _decoded(file: str | bytes) -> tuple["Image.Image", list[str]]:
    return _read(file, _opened)


def size(file: str | bytes) -> tuple[int, int]:
    """Returns an image's width and height by its header; no pixel is decoded.

    Raises:
        Unusable, UserError: as ``decode`` does for a file without an image's header.
    """

    def of_header(stream: Any) -> tuple[int, int]:
        from PIL import Image

        return Image.open(stream, formats=KINDS).size

    return _read(file, of_header)


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
