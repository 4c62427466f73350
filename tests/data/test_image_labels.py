"""Where images and their labels are: ids without suffix, metadata tables, nested class folders."""

import json
from pathlib import Path

import pytest
from PIL import Image

from finetune.data import image_files
from finetune.errors import UserError
from finetune.recipe import Data

pytestmark = pytest.mark.usefixtures("workdir")


def draw(*names: str) -> list[str]:
    for i, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(name)
    return list(names)


def found(path: str, **settings: object) -> tuple[dict[str, str], list[str], dict[str, int]]:
    """The label of each image, notes and counts."""
    data = Data(train=path, **settings)  # pyright: ignore[reportArgumentType]
    table = image_files.read(Path(path), data)
    images = [str(image) for image in table.rows["image"]]
    labels = list(table.rows["label"])
    return dict(zip(images, labels, strict=True)), table.notes, table.fixed


@pytest.mark.parametrize("folder", ["images", "data/images"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_ids_without_a_suffix_get_that_of_their_file(folder: str, kind: str) -> None:
    draw("data/images/0000.jpg", "data/images/7.PNG", "data/images/0010.jpg")
    rows = [("0000", "cat"), (7 if kind == "jsonl" else "7", "dog"), ("0010.jpg", "cat")]
    if kind == "csv":
        text = "image,label\n" + "".join(f"{image},{label}\n" for image, label in rows)
    else:
        text = "".join(json.dumps({"image": i, "label": label}) + "\n" for i, label in rows)
    Path(f"data/train.{kind}").write_text(text, encoding="utf-8")
    labels, _, fixed = found(f"data/train.{kind}", image_folder=folder)
    expected = {"0000.jpg": "cat", "7.PNG": "dog", "0010.jpg": "cat"}
    assert labels == {f"data/images/{name}": label for name, label in expected.items()}
    assert fixed == {"missing image suffix": 2}


def test_an_id_of_two_files_or_of_none_is_named() -> None:
    draw("images/1.jpg", "images/1.png")
    Path("t.csv").write_text("image,label\n1,cat\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^t.csv:2: 1 may be 1.jpg, 1.png; write the suffix$"):
        found("t.csv", image_folder="images")
    Path("t.csv").write_text("image,label\n2,cat\n", encoding="utf-8")
    labels, _, fixed = found("t.csv", image_folder="images")
    assert (labels, fixed) == ({"images/2": "cat"}, {})
    with pytest.raises(UserError, match="image_folder pictures: no such folder"):
        found("t.csv", image_folder="pictures")


@pytest.mark.parametrize("path", ["photos", "photos/metadata.csv"])
def test_a_metadata_table_beside_the_images_is_read(path: str) -> None:
    draw("photos/a.png", "photos/b/c.png", "photos/unnamed.png")
    table = "file_name,label,extra\na.png,cat,1\nb/c.png,dog,2\n"
    Path("photos/metadata.csv").write_text(table, encoding="utf-8")
    labels, notes, _ = found(path)
    assert labels == {"photos/a.png": "cat", "photos/b/c.png": "dog"}
    assert notes == ["images are those of the column file_name"]


def test_another_table_beside_images_is_still_ambiguous() -> None:
    draw("photos/a.png")
    Path("photos/labels.csv").write_text("file_name,label\na.png,cat\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has both labels\.csv and images"):
        found("photos")


def test_nested_class_folders_are_said_and_their_level_can_be_chosen() -> None:
    files = draw("p/animal/cat/1.png", "p/animal/dog/2.png", "p/plant/fern/3.png")
    labels, notes, _ = found("p")
    assert list(labels.values()) == ["animal", "animal", "plant"]
    assert notes == ["labels are the top folders (animal), `--label_levels 2` takes animal/cat"]
    labels, notes, _ = found("p", label_levels=2)
    assert labels == dict(zip(files, ["animal/cat", "animal/dog", "plant/fern"], strict=True))
    assert notes == []


def test_class_folders_of_different_depth_are_refused() -> None:
    draw("p/animal/cat/1.png", "p/plant/2.png")
    with pytest.raises(UserError, match=r"1 folders \(plant/2.png\) and in 2 .*--label_levels 1"):
        found("p")
    labels, _, _ = found("p", label_levels=1)
    assert list(labels.values()) == ["animal", "plant"]
    with pytest.raises(UserError, match=r"plant/2\.png: has 1 folders below p, fewer than"):
        found("p", label_levels=2)


def test_flat_class_folders_say_nothing() -> None:
    draw("p/cat/1.png", "p/dog/2.png")
    assert found("p") == ({"p/cat/1.png": "cat", "p/dog/2.png": "dog"}, [], {})
