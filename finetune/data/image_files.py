"""Finds image files and their labels.

A folder with a folder for each class, a table of paths, or Parquet with the files inside.
"""

import io
from pathlib import Path
from typing import Any

import numpy
import pandas

from finetune.data import image_decoding, readers, sources, table_files
from finetune.errors import UserError
from finetune.recipe import Data

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# The table beside the images of a folder, and its column of their names, as in datasets.
METADATA, FILE_NAME = "metadata", "file_name"
# What ``fixed`` counts for paths without a suffix.
NO_SUFFIX = "missing image suffix"


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
    files = []
    for folder in folders:
        inside = _files(folder)
        if not inside:
            raise UserError(f"{folder}: a class folder without images; add some, or remove it")
        files += inside
    table = readers.Table(pandas.DataFrame(), str(path))
    levels = _label_levels(path, files, data, table) if labelled else 1
    places = [file.relative_to(path) for file in files]
    rows = [
        (str(file), "/".join(place.parts[:levels]))
        for file, place in zip(files, places, strict=True)
    ]
    index = [place.as_posix() for place in places]
    label = data.label if isinstance(data.label, str) else "label"
    table.rows = pandas.DataFrame(rows, columns=[data.image, label], index=index, dtype=object)
    return table


def _label_levels(path: Path, files: list[Path], data: Data, table: readers.Table) -> int:
    """Returns how many of the folders above an image are its label.

    Raises:
        UserError: an image has fewer folders than ``label_levels``, or some have more than others.
    """
    depths = {len(file.relative_to(path).parts) - 1: file for file in reversed(files)}
    least, most = min(depths), max(depths)
    if data.label_levels:
        if data.label_levels > least:
            raise UserError(
                f"{depths[least]}: has {least} folders below {path}, fewer than label_levels "
                f"{data.label_levels}"
            )
        return data.label_levels
    if least != most:
        raise UserError(
            f"{path}: images are in {least} folders ({depths[least].relative_to(path)}) and in "
            f"{most} ({depths[most].relative_to(path)}); say what a label is: --label_levels 1 for "
            "the top folder"[:300]
        )
    if most > 1:
        top = files[0].relative_to(path).parts
        table.note(
            f"labels are the top folders ({top[0]}), `--label_levels {most}` takes "
            f"{'/'.join(top[:most])}"
        )
    return 1


def _image_folder(folder: Path, data: Data) -> Path:
    """Returns where the paths of a table in ``folder`` start.

    Raises:
        UserError: the recipe's ``image_folder`` does not exist.
    """
    if data.image_folder is None:
        return folder
    for place in (Path(data.image_folder), folder / data.image_folder):
        if place.is_dir():
            return place
    raise UserError(f"image_folder {data.image_folder}: no such folder, here or in {folder}")


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of a folder by their name without suffix."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix.lower() in SUFFIXES:
            found.setdefault(file.stem, []).append(file)
    return found


def _unpack(table: readers.Table, folder: Path, data: Data) -> readers.Table:
    """Makes every cell of the image column a path, an encoded file, or None.

    A path without a suffix (an id) gets that of the only image file of the name.
    """
    if data.image not in table.rows.columns and FILE_NAME in table.rows.columns:
        table.rows = table.rows.rename(columns={FILE_NAME: data.image})
        table.note(f"images are those of the column {FILE_NAME}")
    if data.image not in table.rows.columns:
        return table
    start, stems = _image_folder(folder, data), {}

    def file(line: object, value: str) -> str:
        path = start / value
        if path.suffix.lower() in SUFFIXES or path.is_file():
            return str(path)
        if path.parent not in stems:
            stems[path.parent] = _by_stem(path.parent)
        found = stems[path.parent].get(path.name, [path])
        if len(found) > 1:
            names = ", ".join(f.name for f in found)
            raise UserError(f"{table.at(line)}: {value} may be {names}; write the suffix")
        if found != [path]:
            table.fixed[NO_SUFFIX] = table.fixed.get(NO_SUFFIX, 0) + 1
        return str(found[0])

    def cell(line: object, value: Any) -> str | bytes | None:
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return file(line, value)
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

    Without labels, a folder of images needs no class folders. A folder with a table named
    ``metadata`` beside its images is that table (the convention of datasets' imagefolder).

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
        if [f.stem for f in tables] == [METADATA]:
            return read(tables[0], data, labelled)
        if _files(path):
            raise UserError(
                f"{path}: has both {tables[0].name} and images; give the table itself, or move it "
                "elsewhere"
            )
    table = readers.read_table(given, data)
    return _unpack(table, path if path.is_dir() else path.parent, data)


def _digits(name: str, data: Data) -> readers.Table:
    """Reads 5,000 of MNIST's digits, 28 x 28 pixels, each as a PNG file."""
    image_decoding.require_pillow()
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
