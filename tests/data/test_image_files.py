"""Image files: decoding, unusable files, folders and tables of images, and their splits."""

import io
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import datasets
import numpy
import pandas
import pyarrow
import pytest
from PIL import Image, ImageFile
from pyarrow import parquet

from finetune.data import corpus, image_decoding, image_rows, sources
from finetune.data.corpus import Corpus
from finetune.data.image_decoding import Unusable
from finetune.errors import UserError
from finetune.recipe import Data
from finetune.run_directory import Run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, values: list[int], extra=b"") -> bytes:
    """A PNG that PIL cannot write itself; no ``values`` make a header without pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = struct.pack(f">{len(values)}{'H' if depth == 16 else 'B'}", *values)
    size = len(pixels) // height
    lines = b"".join(b"\0" + pixels[y * size : (y + 1) * size] for y in range(height))
    body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def noise(seed: int, kind: str = "PNG", side: int = 8) -> bytes:
    """A colour image that no other seed makes."""
    values = random.Random(seed).randbytes(side * side * 3)
    return encoded(Image.frombytes("RGB", (side, side), values), kind)


def row_of(image: Image.Image) -> list:
    return [image.getpixel((x, 0)) for x in range(image.width)]


def unusable(file: str | bytes) -> str:
    """Why an image is unusable; both functions raise the same reason."""
    with pytest.raises(Unusable) as decoding:
        image_decoding.decode(file)
    with pytest.raises(Unusable) as inspecting:
        image_decoding.inspect(file)
    assert str(decoding.value) == str(inspecting.value)
    assert "\n" not in str(decoding.value)
    return str(decoding.value)


# --- unusable ----------------------------------------------------------------------------------

GRADIENT = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
UNUSABLE = {
    "zero bytes": (b"", "is empty (0 bytes)"),
    "truncated JPEG": (encoded(GRADIENT, "JPEG")[:-200], "is cut short"),
    "truncated PNG": (noise(1)[:-60], "is cut short"),
    "truncated BMP": (encoded(GRADIENT, "BMP")[:-60], "is cut short"),
    "truncated GIF": (encoded(GRADIENT, "GIF")[:-200], "is cut short"),
    "HTML": (HTML, "is not an image, or its header is broken (PNG, JPEG, BMP, GIF, WEBP, TIFF are"),
    "first bytes only": (noise(1)[:12], "is not an image, or its header is broken"),
    "a kind that runs programs": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "is not an image",
    ),
    "pixels without a range": (
        encoded(Image.fromarray(numpy.eye(4, dtype=numpy.float32)), "TIFF"),
        "has pixels of 32 bits or with a sign",
    ),
    "above 40 megapixels": (png(8000, 5001, 8, 2, []), "has 41 megapixels, 40 are the most"),
    "twice PIL's own limit": (png(20000, 20000, 8, 2, []), "has over 178 megapixels, 40 are"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_what_cannot_be_used_says_why(tmp_path, case, as_file):
    content, reason = UNUSABLE[case]
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    assert unusable(str(file) if as_file else content).startswith(reason)


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    assert unusable(str(tmp_path / "a.png")) == "does not exist"
    assert unusable(str(tmp_path)).startswith("cannot be decoded: ")


def test_forty_megapixels_are_decoded_and_more_are_not_even_begun(monkeypatch):
    begun = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: begun.append(1) or load(self))
    monkeypatch.setattr(image_decoding, "MOST_MEGAPIXELS", 0.0001)
    assert unusable(encoded(Image.new("RGB", (11, 10)))).startswith("has 1 megapixels")
    assert not begun
    assert image_decoding.decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)
    assert begun


def test_broken_files_of_every_kind_raise_nothing_else():
    draw, reasons = random.Random(0), set()
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        whole = noise(3, kind, 16)
        for _ in range(60):
            broken = bytearray(whole[: draw.randrange(1, len(whole) + 1)])
            for _ in range(4):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            try:
                image_decoding.decode(bytes(broken))
            except Unusable as reason:
                reasons.add(str(reason).split(":")[0].split(" (")[0])
    assert {"is cut short", "cannot be decoded"} < reasons


def test_without_pillow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for ask in (lambda: image_decoding.decode(b"x"), lambda: load(dataset="embedded:mnist")):
        with pytest.raises(UserError) as caught:
            ask()
        assert (
            str(caught.value)
            == "images need pillow and kornia: pip install 'finetune-recipes[vision]'"
        )


def test_between_the_two_limits_pil_does_not_warn(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(10000, 10000, 8, 2, []))
    code = f"from finetune.data import image_decoding\nimage_decoding.decode({str(file)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip().endswith("Unusable: has 100 megapixels, 40 are the most")
    assert "Warning" not in run.stderr


# --- normalised --------------------------------------------------------------------------------


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return image


def two_pixels(mode: str, *values) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(v, v, v) for v in values]


# case: file, its first row of pixels once decoded, what was counted
NORMALISED = {
    "colour": (encoded(two_pixels("RGB", RED, (1, 2, 3))), [RED, (1, 2, 3)], []),
    "grey": (encoded(two_pixels("L", 0, 7)), grey(0, 7), ["grey to RGB"]),
    "one bit": (encoded(two_pixels("1", 0, 255)), grey(0, 255), ["grey to RGB"]),
    "palette": (encoded(palette()), [RED, (0, 0, 255)], ["palette to RGB"]),
    "palette with a clear colour": (
        encoded(palette(), transparency=1),
        [RED, WHITE],
        ["palette to RGB", "alpha on white"],
    ),
    "alpha": (
        encoded(two_pixels("RGBA", (*RED, 255), (0, 0, 0, 0), (0, 0, 0, 51))),
        [RED, WHITE, (204, 204, 204)],
        ["alpha on white"],
    ),
    "grey and alpha": (
        encoded(two_pixels("LA", (9, 255), (9, 0))),
        grey(9, 255),
        ["grey to RGB", "alpha on white"],
    ),
    "a clear grey": (
        encoded(two_pixels("L", 9, 8), transparency=9),
        grey(255, 8),
        ["grey to RGB", "alpha on white"],
    ),
    "CMYK": (
        encoded(two_pixels("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"),
        [RED, (0, 0, 0)],
        ["CMYK to RGB"],
    ),
    "16-bit grey": (
        png(4, 1, 16, 0, [0, 255, 32768, 65535]),
        grey(0, 0, 128, 255),
        ["grey to RGB", "16-bit scaled"],
    ),
    "16-bit grey TIFF": (
        encoded(Image.fromarray(numpy.array([[0, 256, 32768, 65535]], numpy.uint16)), "TIFF"),
        grey(0, 1, 128, 255),
        ["grey to RGB", "16-bit scaled"],
    ),
    "a clear 16-bit grey": (
        png(2, 1, 16, 0, [40000, 32768], chunk(b"tRNS", struct.pack(">H", 32768))),
        grey(156, 255),
        ["grey to RGB", "16-bit scaled", "alpha on white"],
    ),
    "16-bit colour": (
        png(2, 1, 16, 2, [65535, 32768, 0, 256, 255, 257]),
        [(255, 128, 0), (1, 0, 1)],
        ["16-bit scaled"],
    ),
    "16-bit alpha": (
        png(2, 1, 16, 6, [65535, 0, 0, 65535, 0, 0, 0, 0]),
        [RED, WHITE],
        ["16-bit scaled", "alpha on white"],
    ),
    "animation": (
        encoded(
            Image.new("RGB", (2, 1), RED),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (2, 1), "blue")],
        ),
        [RED, RED],
        ["first frame of an animation", "palette to RGB"],
    ),
    "animated PNG": (
        encoded(
            Image.new("RGB", (2, 1), RED),
            save_all=True,
            append_images=[Image.new("RGB", (2, 1), "blue")],
        ),
        [RED, RED],
        ["first frame of an animation"],
    ),
}


@pytest.mark.parametrize("case", NORMALISED)
def test_every_kind_becomes_rgb_and_is_counted(case):
    content, pixels, fixed = NORMALISED[case]
    image = image_decoding.decode(content)
    assert image.mode == "RGB"
    assert row_of(image) == pixels
    assert image_decoding.inspect(content)[1] == fixed


@pytest.mark.parametrize("case", NORMALISED)
def test_one_channel_is_the_grey_of_the_three(case):
    content, pixels, _ = NORMALISED[case]
    image = image_decoding.decode(content, channels=1)
    assert image.mode == "L"
    wanted = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels]
    assert row_of(image) == pytest.approx(wanted, abs=0.51)


def test_a_cmyk_jpeg_is_not_a_negative():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    content = encoded(image, "JPEG", quality=100)
    found = image_decoding.decode(content).getpixel((8, 8))
    assert found == pytest.approx(RED, abs=4)
    assert image_decoding.inspect(content)[1] == ["CMYK to RGB"]


# Where the pixel of the upper left corner of the file is seen, in an image 3 wide and 2 high.
TURNED = {
    2: ((3, 2), (2, 0)),
    3: ((3, 2), (2, 1)),
    4: ((3, 2), (0, 1)),
    5: ((2, 3), (0, 0)),
    6: ((2, 3), (1, 0)),
    7: ((2, 3), (1, 2)),
    8: ((2, 3), (0, 2)),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_image_is_turned_as_its_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (3, 2), WHITE)
    image.putpixel((0, 0), RED)
    content = encoded(image, kind, exif=exif)
    size, place = TURNED[orientation]
    seen = image_decoding.decode(content)
    assert seen.size == size
    points = [(x, y) for x in range(size[0]) for y in range(size[1])]
    assert [p for p in points if seen.getpixel(p) == RED] == [place]
    assert image_decoding.inspect(content)[1] == ["EXIF rotation"]


def test_an_upright_exif_and_a_photo_with_a_preview_are_not_counted():
    exif = Image.Exif()
    exif[0x0112] = 1
    upright = encoded(GRADIENT, "JPEG", exif=exif)
    assert image_decoding.inspect(upright)[1] == []
    with_preview = encoded(GRADIENT, "MPO", save_all=True, append_images=[GRADIENT.resize((8, 8))])
    assert image_decoding.inspect(with_preview)[1] == []
    assert image_decoding.decode(with_preview).size == (64, 64)


def test_the_digest_is_of_what_is_seen():
    image = Image.frombytes("RGB", (4, 2), bytes(range(24)))
    digest = image_decoding.inspect(encoded(image))[0]
    assert len(digest) == 64
    assert int(digest, 16) >= 0
    assert image_decoding.inspect(encoded(image, "BMP"))[0] == digest
    assert image_decoding.inspect(encoded(image, compress_level=0))[0] == digest
    assert image_decoding.inspect(encoded(image.convert("RGBA")))[0] == digest
    other_shape = Image.frombytes("RGB", (2, 4), bytes(range(24)))
    assert image_decoding.inspect(encoded(other_shape))[0] != digest
    image.putpixel((3, 1), (0, 0, 0))
    assert image_decoding.inspect(encoded(image))[0] != digest


# --- tables ------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**options) -> Corpus:
    return corpus.load(Data(**options), corpus.IMAGES)


def error_of(**options) -> str:
    with pytest.raises(UserError) as caught:
        load(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def class_folders(root: str, count: int, start: int = 0, names=("cat", "dog")) -> str:
    """``count`` images that differ, in turn from each class."""
    for i in range(start, start + count):
        file = Path(root) / names[i % len(names)] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise(i))
    return root


def loose(count: int, start: int = 0, root: str = "files") -> list[tuple[str, str]]:
    """Images in one folder: their paths from here, and labels."""
    Path(root).mkdir(exist_ok=True)
    for i in range(start, start + count):
        (Path(root) / f"{i}.png").write_bytes(noise(i))
    return [(f"{root}/{i}.png", ["cat", "dog"][i % 2]) for i in range(start, start + count)]


def table(rows: list[tuple[str, str]], name: str) -> str:
    pandas.DataFrame(rows, columns=["image", "label"]).to_csv(
        name, index=False, sep="\t" if name.endswith(".tsv") else ","
    )
    return name


def everything(found: Corpus) -> pandas.DataFrame:
    return pandas.concat([found.train, found.validation, found.test])


def labels_by_image(found: Corpus) -> dict:
    return {r.image: found.label_names[r.label] for r in everything(found).itertuples()}


def test_class_folders_are_labels_and_files_are_rows(here):
    class_folders("own", 40)
    (here / "own/cat/deeper").mkdir()
    (here / "own/cat/deeper/A.JPG").write_bytes(noise(100, "JPEG"))
    for ignored in (".hidden.png", "notes.txt", "._0.png"):
        (here / "own/cat" / ignored).write_bytes(b"no image")
    (here / "own/.cache").mkdir()
    (here / "own/README.md").write_text("no image", encoding="utf-8")
    found = load(train="own", label_levels=1)
    assert list(found.train.columns) == ["id", "image", "digest", "label"]
    assert found.label_names == ["cat", "dog"]
    wanted = {f"own/{['cat', 'dog'][i % 2]}/{i}.png": ["cat", "dog"][i % 2] for i in range(40)}
    assert labels_by_image(found) == wanted | {"own/cat/deeper/A.JPG": "cat"}
    rows = everything(found)
    assert rows["digest"].nunique() == 41
    named = {r.id.partition("-")[2]: r.image for r in rows.itertuples()}
    assert named["cat/deeper/A.JPG"] == "own/cat/deeper/A.JPG"
    assert (found.rejected, found.report["fixed"]) == ([], {})


def test_folders_named_by_numbers_are_in_their_order(here):
    found = load(train=class_folders("own", 60, names=("10", "9", "1")))
    assert found.label_names == ["1", "9", "10"]


def empty_class(root: Path) -> None:
    class_folders("own", 10)
    (root / "own/fox").mkdir()
    (root / "own/fox/.hidden.png").write_bytes(noise(1))


def no_class(root: Path) -> None:
    loose(4, root="own")


def one_loose(root: Path) -> None:
    class_folders("own", 10)
    (root / "own/z.png").write_bytes(noise(1))


def nothing(root: Path) -> None:
    (root / "own").mkdir()


def splits(root: Path) -> None:
    class_folders("own/train", 10)
    class_folders("own/test", 10, 10)


def table_beside_images(root: Path) -> None:
    table(loose(4), "labels.csv")
    class_folders("own", 4)
    (root / "labels.csv").rename(root / "own/labels.csv")


def one_class(root: Path) -> None:
    class_folders("own", 10, names=("cat",))


STOPPED = {
    empty_class: "own/fox: a class folder without images; add some, or remove it",
    no_class: "own: has images but no class folders; make a folder for each class, own/NAME/",
    one_loose: "own/z.png: is not in a class folder; move it into one",
    nothing: "own: has no images; make a folder for each class",
    splits: "own: has folders of several splits; give it as `dataset:`",
    table_beside_images: "own: has both labels.csv and images; give the table itself",
    one_class: "own: every label is 'cat'; a classifier needs two classes",
    lambda root: None: "own: no such file or folder",
}


@pytest.mark.parametrize("make", STOPPED, ids=lambda make: make.__name__)
def test_a_folder_that_is_no_set_of_classes_is_stopped(here, make):
    make(here)
    assert error_of(train="own").startswith(STOPPED[make])


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "deeper/rows.csv"])
def test_a_table_of_paths_starts_at_its_own_folder(here, monkeypatch, name):
    (here / "deeper").mkdir()
    monkeypatch.chdir(here / Path(name).parent)
    rows = loose(40)
    table(rows, Path(name).name)
    monkeypatch.chdir(here)
    found = load(train=name)
    assert labels_by_image(found) == {
        str(Path(name).parent / image): label for image, label in rows
    }
    assert set(found.test["id"]) < {f"train-{line}" for line in range(2, 42)}


def test_absolute_paths_stay_and_other_columns_can_be_named(here):
    rows = [{"photo": str(here / i), "animal": v} for i, v in loose(20)]
    (here / "elsewhere").mkdir()
    pandas.DataFrame(rows).to_json("elsewhere/rows.jsonl", orient="records", lines=True)
    found = load(train="elsewhere/rows.jsonl", image="photo", label="animal")
    assert labels_by_image(found) == {row["photo"]: row["animal"] for row in rows}
    message = error_of(train="elsewhere/rows.jsonl", image="phot", label="animal")
    assert message.endswith("it has photo, animal (set `image:`; did you mean 'photo'?)")


def parquet_file(name: str, cells: list, labels: list) -> str:
    parquet.write_table(pyarrow.table({"image": cells, "label": labels}), name)
    return name


@pytest.mark.parametrize("struct_of", [True, False], ids=["struct", "bytes"])
def test_parquet_holds_the_files(here, struct_of):
    files = [noise(i) for i in range(40)]
    cells = [{"bytes": f, "path": "x.png"} for f in files] if struct_of else files
    labels = [["cat", "dog"][i % 2] for i in range(40)]
    found = load(train=parquet_file("a.parquet", cells, labels))
    assert labels_by_image(found) == dict(zip(files, labels, strict=True))
    (here / "parts").mkdir()
    parquet_file("parts/1.parquet", cells[:20], labels[:20])
    parquet_file("parts/2.parquet", cells[20:], labels[20:])
    parts = load(train="parts")
    assert labels_by_image(parts) == labels_by_image(found)
    assert "train-2.parquet:20" in set(everything(parts)["id"])


def test_parquet_may_name_files_and_lack_some(here):
    cells: list[dict] = [{"bytes": None, "path": path} for path, _ in loose(199)]
    labels = [["cat", "dog"][i % 2] for i in range(200)]
    parquet_file("a.parquet", [*cells, {"bytes": None, "path": None}], labels)
    found = load(train="a.parquet")
    assert set(everything(found)["image"]) == {cell["path"] for cell in cells}
    assert found.rejected == [{"source": "a.parquet", "line": 200, "reason": "empty image"}]


def test_a_column_of_something_else_is_stopped(here):
    message = error_of(train=parquet_file("a.parquet", [[1, 2], [3]], ["cat", "dog"]))
    assert message.startswith("a.parquet:1: image is list; an image is a path, or the bytes")


@pytest.mark.parametrize("validation", ["validation", "val", None])
def test_a_folder_with_train_and_test_is_a_dataset(here, validation):
    class_folders("own/train", 40)
    class_folders("own/test", 10, start=100)
    if validation:
        class_folders(f"own/{validation}", 6, start=200)
    found = load(dataset="own")
    sizes = (len(found.train), len(found.validation), len(found.test))
    assert sizes == ((40, 6, 10) if validation else (36, 4, 10))
    assert (found.source, found.test_is) == ("own", "given")
    assert set(found.test["id"]) == {
        f"test-{['cat', 'dog'][i % 2]}/{i}.png" for i in range(100, 110)
    }


def test_given_folders_and_files_are_taken_as_they_are(here):
    found = load(
        train=class_folders("mine", 40),
        test=table(loose(10, start=100), "test.csv"),
        validation=class_folders("more", 8, start=200),
    )
    assert (len(found.train), len(found.validation), len(found.test)) == (40, 8, 10)
    assert found.source == "mine, more, test.csv"


def test_a_class_only_in_test_is_stopped_by_its_file(here):
    class_folders("own/train", 40)
    class_folders("own/test", 4, start=100, names=("cat", "dogs"))
    assert error_of(dataset="own") == (
        "own/test/dogs/101.png: label 'dogs' does not occur in train; did you mean 'dog'?"
    )


def test_a_folder_of_nothing_is_no_dataset(here):
    class_folders("own", 10)
    assert error_of(dataset="own").endswith("and no train/")


def test_a_cached_hub_dataset_of_images_keeps_its_files_and_label_names(here, monkeypatch):
    folder = here / COMMIT
    folder.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    files = [noise(i) for i in range(30)]
    for split, part in (("train", files[:20]), ("test", files[20:])):
        rows = {
            "image": [{"bytes": file, "path": None} for file in part],
            "label": [i % 2 for i in range(len(part))],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    monkeypatch.setattr(sources, "snapshot", lambda *_: folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    found = load(dataset="someone/animals")
    assert found.label_names == ["dog", "cat"]
    assert (found.revision, found.test_is) == (COMMIT, "official")
    assert labels_by_image(found) == {f: ["dog", "cat"][i % 2] for i, f in enumerate(files)}


def test_embedded_digits():
    found = load(dataset="embedded:mnist")
    rows = everything(found)
    assert len(rows) == 5000
    assert found.label_names == [str(digit) for digit in range(10)]
    assert rows["label"].value_counts().to_dict() == dict.fromkeys(range(10), 500)
    assert len(found.test) == 1000
    assert found.test["label"].value_counts().to_dict() == dict.fromkeys(range(10), 100)
    assert found.report["fixed"] == {"grey to RGB": 5000}
    assert not found.rejected
    first = rows.set_index("id")["image"]["train-1"]
    pixels = numpy.asarray(image_decoding.decode(first, channels=1))
    file = sources.embedded("mnist", sources.EMBEDDED_DATASETS, "dataset")
    written = pandas.read_csv(file, header=None, nrows=1).to_numpy()[0]
    assert pixels.shape == (28, 28)
    assert pixels.ravel().tolist() == written[:-1].tolist()
    assert pixels.max() > 200


def test_embedded_images_are_no_texts_and_texts_no_images():
    with pytest.raises(UserError, match="embedded:mnist: has images, not texts"):
        corpus.load(Data(dataset="embedded:mnist"))
    assert error_of(dataset="embedded:imdb").startswith("embedded:imdb: no column 'image'; it has")


# --- rows rejected, counted, and the same twice ----------------------------------------------

# cases of UNUSABLE
REASONS = ["zero bytes", "truncated JPEG", "HTML", "above 40 megapixels"]


@pytest.mark.parametrize("case", REASONS)
def test_an_image_that_cannot_be_used_is_rejected_by_its_file(here, case):
    content, reason = UNUSABLE[case]
    class_folders("own", 99)
    (here / "own/cat/bad.jpg").write_bytes(content)
    found = load(train="own")
    assert len(everything(found)) == 99
    assert len(found.rejected) == found.report["rejected"] == 1
    rejected = found.rejected[0]
    assert (rejected["source"], rejected["line"]) == ("own/cat/bad.jpg", None)
    assert rejected["reason"].startswith(reason)
    (here / "own/dog/bad.jpg").write_bytes(content)
    message = error_of(train="own", max_rejected=1)
    assert message.startswith(f"own/cat/bad.jpg: {reason}")
    assert "; 2 of 101 rows cannot be used, fix or remove them" in message


def test_rows_of_a_table_are_rejected_by_line_and_name_their_file(here):
    rows = [*loose(297), ("files/gone.png", "cat"), ("", "dog"), ("files/cut.png", "dog")]
    (here / "files/cut.png").write_bytes(noise(7)[:-60])
    found = load(train=table(rows, "rows.csv"))
    assert sorted((r["line"], r["reason"]) for r in found.rejected) == [
        (299, "files/gone.png does not exist"),
        (300, "empty image"),
        (301, "files/cut.png is cut short"),
    ]
    assert {r["source"] for r in found.rejected} == {"rows.csv"}
    table([*rows, ("files/gone.png", "dog")], "rows.csv")
    message = error_of(train="rows.csv", max_rejected=3)
    assert message.startswith("rows.csv:300: empty image; 4 of 301 rows cannot be used")


def test_bytes_that_cannot_be_used_are_rejected_by_their_row(here):
    files = [*(noise(i) for i in range(99)), HTML]
    found = load(train=parquet_file("a.parquet", files, ["cat", "dog"] * 50))
    assert (found.rejected[0]["source"], found.rejected[0]["line"]) == ("a.parquet", 100)
    assert found.rejected[0]["reason"].startswith("is not an image")
    assert len(everything(found)) == 99


def test_what_was_normalised_is_counted_over_all_splits(here):
    class_folders("own/train", 40)
    class_folders("own/test", 10, start=100)
    grey_one, grey_two, clear = (NORMALISED[c][0] for c in ("grey", "one bit", "alpha"))
    for place, content in (("train/cat/a", grey_one), ("test/dog/b", grey_two)):
        (here / f"own/{place}.png").write_bytes(content)
    (here / "own/train/dog/c.png").write_bytes(clear)
    assert load(dataset="own").report["fixed"] == {"grey to RGB": 2, "alpha on white": 1}


def test_the_same_image_in_two_files_is_a_duplicate_and_two_labels_are_listed(here):
    class_folders("own", 40)
    for place in ("cat/again.bmp", "dog/torn.bmp"):
        (here / "own" / place).write_bytes(noise(2, "BMP"))
    found = load(train="own")
    assert found.report["duplicates_in_train"] == 2
    assert found.report["contradictions_in_train"] == 1
    assert sorted(found.report["contradicting_rows"][0]) == [
        "train-cat/2.png",
        "train-cat/again.bmp",
        "train-dog/torn.bmp",
    ]
    assert not set(found.train["digest"]) & set(found.test["digest"])


def test_the_same_image_in_train_and_test_is_stopped(here):
    class_folders("own/train", 40)
    class_folders("own/test", 9, start=100)
    (here / "own/test/cat/copy.bmp").write_bytes(noise(4, "BMP"))
    message = error_of(dataset="own")
    assert message.startswith("own: 1 of 10 test rows are also in train, the first is test-cat")
    assert "`allow_overlap: true`" in message
    found = load(dataset="own", allow_overlap=True, validation_size=0)
    assert found.report["overlapping_rows"] == ["test-cat/copy.bmp"]


def test_the_fingerprint_is_of_images_and_not_of_where_they_lie(here, monkeypatch):
    for root in ("one", "two/deeper"):
        class_folders(f"{root}/own", 40)
    monkeypatch.chdir(here / "one")
    first = load(train="own")
    assert len(first.fingerprint) == 16
    monkeypatch.chdir(here)
    assert load(train=str(here / "two/deeper/own")).fingerprint == first.fingerprint
    file = here / "two/deeper/own/cat/0.png"
    file.write_bytes(encoded(Image.open(io.BytesIO(noise(0))), compress_level=0))
    assert load(train="two/deeper/own").fingerprint == first.fingerprint
    file.write_bytes(noise(1000))
    assert load(train="two/deeper/own").fingerprint != first.fingerprint


def test_numbers_and_sets_of_labels_belong_to_images_too(here):
    rows = [(image, f"{i / 4}") for i, (image, _) in enumerate(loose(20))]
    found = load(train=table(rows, "rows.csv"), problem_type="regression")
    assert {r.image: r.label for r in everything(found).itertuples()} == {
        image: float(label) for image, label in rows
    }
    rows = [(image, ["red", "red,blue", ""][i % 3]) for i, (image, _) in enumerate(rows)]
    table(rows, "rows.csv")
    found = load(train="rows.csv", problem_type="multi_label_classification")
    assert found.label_names == ["blue", "red"]
    wanted = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    for row in everything(found).itertuples():
        assert row.label == wanted[int(Path(row.image).stem) % 3]


def test_images_are_inspected_side_by_side(here, monkeypatch):
    meet, inspect = threading.Barrier(2), image_decoding.inspect

    def waits(picture):
        meet.wait(30)  # raises unless another image is inspected at the same time
        return inspect(picture)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(image_decoding, "inspect", waits)
    assert len(everything(load(train=class_folders("own", 20)))) == 20


def noisy_folders(folder: Path, count: int, side: int) -> None:
    draw = numpy.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count // 2):
            values = draw.integers(0, 256, (side, side, 3), dtype=numpy.uint8)
            Image.fromarray(values).save(folder / name / f"{i}.png", compress_level=0)


def test_what_is_checked_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 kB each: neither images nor what is asked for at once may add up.
    monkeypatch.setattr(image_rows, "WINDOW", 100)
    peaks = []
    for count in (200, 200, 2000):
        folder = tmp_path / f"{count}-{len(peaks)}"
        noisy_folders(folder, count, 64)
        tracemalloc.start()
        found = corpus.load(Data(train=str(folder)), corpus.IMAGES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.train) + len(found.validation) + len(found.test) == count
    # The first one also loads libraries. A row has two paths, which Python 3.13 makes larger.
    assert (peaks[2] - peaks[1]) / 1800 < 2000


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Two runs in one process, the second with ten times the images: how peak memory grows."""
    side = 200
    words = []
    for count in ("100", "1000"):
        noisy_folders(tmp_path / count, int(count), side)
        words.append(["train", "noise.yaml", "--train", count, "--output_dir", f"runs/{count}"])
    (tmp_path / "noise.yaml").write_text(
        """\
task: image-classification
model:
  checkpoint: "new:convnet"
  image_size: 16
  config: {channels: [4], convolutions: 1, kernel_size: 3, num_channels: 3}
data: {train: photos}
augmentation: {flip: 0.5}
training: {num_train_epochs: 1, per_device_train_batch_size: 20, use_cpu: true}
""",
        encoding="utf-8",
    )
    code = f"from finetune import cli\nfor words in {words}: cli.main(words)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    small, large = (
        Run(tmp_path / "runs" / count).results()["cost"]["peak_memory_bytes"]
        for count in ("100", "1000")
    )
    # What is added is 108 MB of images, decoded or as files; a third of it may be other things.
    assert large - small < 900 * side * side * 3 / 3
    assert small > 1e8
