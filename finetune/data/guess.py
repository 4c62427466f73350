"""Guesses the task of a table and the columns for it, for a run without a recipe.

``of`` is a pure function: the same table and flags always give the same guess. What a flag gives is
not guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune import recipe
from finetune.data import (
    column_kinds,
    image_files,
    questions,
    readers,
    table_files,
    tables,
)
from finetune.data.column_choice import Columns
from finetune.errors import UserError, refuse_unknown

CLASSIFICATION, IMAGES = "text-classification", "image-classification"
ENTITIES = "token-classification"
GENERATION, MASKED, MASKED_IMAGES = "text-generation", "fill-mask", "masked-image-modeling"
ANSWERS = "question-answering"
TASKS = [CLASSIFICATION, ENTITIES, IMAGES, GENERATION, MASKED, MASKED_IMAGES, ANSWERS]
# Flags that name columns of other tasks.
OTHER_ROLES = {"text", "text_pair", "label", "image", "messages", "prompt", "completion"}
# Up to so many rows, so many epochs; more rows need one.
EPOCHS = [(500, 10), (2_000, 5), (20_000, 3), (100_000, 2)]
# Texts of which half have more characters, about four a token, are cut at more tokens.
MANY_CHARACTERS, MORE_TOKENS = 512, 256
WIDTH = 80


@dataclass(frozen=True)
class Reason:
    """A line of a guess: what it is about, the words, and the flags that change it."""

    about: str
    text: str
    flags: str = ""

    def line(self) -> str:
        """Returns it as a line of at most ``WIDTH`` characters."""
        room = WIDTH - 13 - (len(self.flags) + 2 if self.flags else 0)
        text = self.text if len(self.text) <= room else f"{self.text[: room - 1].rstrip()}…"
        return f"  {self.about:<10} {text:<{room}}  {self.flags}".rstrip()


@dataclass(frozen=True)
class Guess:
    """What a table was taken for.

    Attributes:
        task: the recipe's task.
        data: keys of the recipe's data section, the given columns included.
        settings: other keys of a recipe that follow from the rows: epochs, ``max_length``.
        reasons: the guess in words, one line each.
    """

    task: str
    data: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)


def of(table: readers.Table, given: Mapping[str, str]) -> Guess:
    """Guesses the task and the columns of a table.

    Args:
        given: the flags by key, such as ``{"label": "stars"}``.

    Raises:
        UserError: a given column or task does not exist, no column fits, or two fit equally well;
            the message names the flag to add.
    """
    task = given.get("task")
    if task is not None and task not in TASKS:
        refuse_unknown(task, TASKS, "--task: task")
    if task == ANSWERS or (task is None and not OTHER_ROLES & given.keys()):
        answered = _answered(table, given)
        if answered or task == ANSWERS:
            return answered or Guess(ANSWERS, {})
    columns = Columns.of(table, given)
    task, data = _task(columns, task)
    settings: dict[str, str] = {}
    if "label" in data and not {"num_train_epochs", "max_steps"} & given.keys():
        settings["num_train_epochs"] = str(epochs(len(table.rows)))
    if "label" in data and task != ENTITIES:
        label = columns[data["label"]]
        data["problem_type"] = given.get("problem_type", label.problem_type)
        if "label_separator" in given or (label.separator and label.kind == column_kinds.SETS):
            data["label_separator"] = given.get("label_separator", label.separator)
    if task == CLASSIFICATION and "max_length" not in given:
        lengths = columns[data["text"]].values.map(lambda value: len(str(value)))
        if lengths.median() > MANY_CHARACTERS:
            settings["max_length"] = str(MORE_TOKENS)
    return Guess(task, data, settings, _reasons(columns, task, data))


def _answered(table: readers.Table, given: Mapping[str, str]) -> Guess | None:
    """Guesses question answering; None where a column for it is missing."""
    known, data = [str(name) for name in table.rows.columns], {}
    for key, names in (
        ("question", ["question"]),
        ("context", ["context"]),
        ("answers", ["answers", questions.ANSWER]),
    ):
        wanted = [given[key]] if key in given else names
        found = next((n for n in (tables.find_column(w, known) for w in wanted) if n), None)
        if found is None:
            return None
        data[key] = found
    text = "finds the answer to a question in its context"
    columns = ", ".join(data.values())
    return Guess(
        ANSWERS,
        data,
        reasons=[
            Reason("task", f"{ANSWERS}, {text}", "--task"),
            Reason("columns", columns, " ".join(f"--{key}" for key in data)),
        ],
    )


def epochs(rows: int) -> int:
    """Returns how many epochs a pretrained classifier is trained on so many rows."""
    return next((count for most, count in EPOCHS if rows <= most), 1)


def _task(columns: Columns, task: str | None) -> tuple[str, dict[str, str]]:
    """Returns the task, and the name of the column for each of its roles."""
    given = columns.given
    if task in {None, ENTITIES}:
        found = columns.entities()
        if found:
            return ENTITIES, {"text": found[0].name, "label": found[1].name}
        if task:
            columns.none("tags of words, or spans of texts,", "--label")
    generates = task in {None, GENERATION} and not {"text_pair", "label", "image"} & given.keys()
    if generates and not {"text", "prompt", "completion"} & given.keys():
        chats = columns.chats()
        if chats:
            return GENERATION, {"messages": chats.name}
    if task in {None, IMAGES, MASKED_IMAGES} and not {"text", "text_pair"} & given.keys():
        image = columns.images()
        if image:
            return _image_task(columns, task, image.name)
        if task:
            columns.none("an image", "--image")
    prompts = columns.prompts() if generates and "text" not in given else None
    if prompts:
        # Questions and answers with a label are classified, unless the flags say otherwise.
        asked = task == GENERATION or {"prompt", "completion"} & given.keys()
        if asked or not columns.has_usual_label(prompts):
            return GENERATION, {"prompt": prompts[0].name, "completion": prompts[1].name}
    return _text_task(columns, task)


def _image_task(columns: Columns, task: str | None, image: str) -> tuple[str, dict[str, str]]:
    if task == MASKED_IMAGES:
        return task, {"image": image}
    texts = [c.name for c in columns.every if c.kind == column_kinds.TEXTS]
    if texts and not task and "image" not in columns.given:
        raise UserError(
            f"{columns.source}: {image!r} has images and {texts[0]!r} texts; add --image {image} "
            f"or --text {texts[0]}"
        )
    label = columns.label([image], columns.given.get("problem_type") == "regression")
    if label is None:
        columns.none("a label for the images", "--label")
    return IMAGES, {"image": image, "label": label.name}


def _text_task(columns: Columns, task: str | None) -> tuple[str, dict[str, str]]:
    given, data = columns.given, {}
    pair = columns.pair() if task in {None, CLASSIFICATION} else None
    if pair and not {"text", "text_pair"} & given.keys():
        data = {"text": pair[0].name, "text_pair": pair[1].name}
    else:
        text = columns.text()
        if text is None:
            columns.none("a text, an image or a chat", "--text, --image or --messages")
        data = {"text": text.name}
        if "text_pair" in given:
            data["text_pair"] = given["text_pair"]
    if task in {GENERATION, MASKED}:
        return task, {"text": data["text"]}
    label = columns.label(data.values(), given.get("problem_type") == "regression")
    if label:
        return CLASSIFICATION, {**data, "label": label.name}
    columns.check_constant_label(task)
    if task or "text_pair" in data:
        columns.none("a label", "--label")
    return GENERATION, data


# --- in words ------------------------------------------------------------------------------------

LEARNED = {
    "messages": "chats; learns the assistant's messages",
    "prompt": "prompts; learns their completions",
    "text": "texts without labels",
    "image": "images without labels",
}


def _reasons(columns: Columns, task: str, data: dict[str, str]) -> list[Reason]:
    first = next(iter(data))
    if task == ENTITIES:
        told, counts = {"task": (f"{task}, entities in texts", "--task")}, "tags or spans"
    elif "label" in data:
        label = columns[data["label"]]
        what = {
            "regression": "numbers (regression)",
            "multi_label_classification": "several labels a row",
        }.get(data["problem_type"], f"{label.distinct} classes")
        told = {"task": (f"{task}, {what}", "--task --problem_type")}
        counts = label.counts(data["problem_type"], data.get("label_separator", ","))
    else:
        told, counts = {"task": (f"{task}, on {LEARNED[first]}", "--task")}, ""
    for key in ("messages", "image", "text", "text_pair", "prompt", "completion"):
        if key in data:
            told[key] = (f"{data[key]}: {columns[data[key]].example}", f"--{key}")
    if "label" in data:
        told["label"] = (f"{data['label']}: {counts}", "--label")
    used = {name for key, name in data.items() if key not in {"problem_type", "label_separator"}}
    unused = [f"{c.name or 'no name'} ({c.kind})" for c in columns.every if c.name not in used]
    given = {f"--{key}" for key in columns.given}
    reasons = [
        Reason(about, text, "(given)" if {*flags.split()} <= given else flags)
        for about, (text, flags) in told.items()
    ]
    return reasons + ([Reason("unused", ", ".join(unused))] if unused else [])


# --- reading -------------------------------------------------------------------------------------


def read(place: str, given: Mapping[str, str]) -> tuple[str, readers.Table]:
    """Reads the training rows of a file or folder.

    Args:
        given: the flags by key; those that say how to read count.

    Returns:
        The key that names it in a recipe, ``train`` or ``dataset`` (a folder of splits), and the
        rows.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    path = Path(place)
    images = path.is_dir() and _has_images(path)
    splits = path.is_dir() and "train" in {split for split, _ in readers.split_files(path)}
    key, labelled = "dataset" if splits else "train", given.get("task") != MASKED_IMAGES
    # Any recipe: its data section is replaced by the flags, which are checked as always.
    data = recipe.read("your-data/text", {**given, key: place}).data
    if images and splits:
        return key, image_files.dataset(place, data, labelled)[0]["train"]
    if images:
        return key, image_files.read(path, data, labelled)
    if splits:
        return key, readers.dataset(data)[0]["train"]
    table = readers.read_table(place, data)
    table.rows = questions.flat(table.rows)
    return key, table


def _has_images(folder: Path) -> bool:
    """Returns whether a folder has image files, and no tables beside them."""
    tables = {file.stem for file in folder.iterdir() if table_files.is_table(file)}
    return tables <= {image_files.METADATA} and any(
        f.suffix.lower() in image_files.SUFFIXES for f in folder.rglob("*")
    )
