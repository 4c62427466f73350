"""What tasks on texts share: the tokenizer, truncation, padding, rows and batches to predict."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_torch_xla_available

from finetune import run_directory
from finetune.data import dialects, readers, sources, text_augmentation
from finetune.data.batching import within
from finetune.errors import UserError
from finetune.models import configs, positions, tokenizer_files
from finetune.models.speed import padding_free
from finetune.recipe import Augmentation, Model, Recipe

TOKENIZER_FILES = {
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    "sentencepiece.bpe.model",
}
# Rows that are encoded together for prediction: enough to find others of similar length.
WINDOW = 1024
# Evaluation batches: so many rows, or fewer where their tokens would be more than that.
EVAL_ROWS, EVAL_TOKENS = 64, 32_768
# Characters of a text that the report shows.
SHOWN = 600
# What the README of an export says of its batches.
PADDED = "Padding is computed too: batches of texts of similar length are faster."


def refuse_augmentation(recipe: Recipe) -> None:
    """Checks that a recipe changes no images, for a task that has none.

    Raises:
        UserError: it does.
    """
    changes_texts = dict.fromkeys(text_augmentation.KEYS, 0.0)
    if replace(recipe.augmentation, **changes_texts) != Augmentation():
        raise UserError(f"{recipe.name}: augmentation changes images; leave it out for texts")


def load_tokenizer(
    recipe: Recipe, checkpoint: sources.Checkpoint, config: PreTrainedConfig
) -> PreTrainedTokenizerBase:
    """Returns the checkpoint's tokenizer with a padding token and the recipe's ``max_length``.

    Raises:
        UserError: there is none, it belongs to another model, or ``max_length`` is too large.
    """
    folder, options = checkpoint.processor
    if checkpoint.is_new and recipe.distillation.teacher:
        # Random weights have no vocabulary yet.
        folder = run_directory.one(recipe.distillation.teacher).model
    has_files = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if "gguf_file" not in options and not has_files:
        raise UserError(f"{checkpoint.name}: has no tokenizer; take a checkpoint that has one")
    tokenizer = tokenizer_files.load(folder, options)
    beyond = [i for i in tokenizer.added_tokens_decoder if i >= config.vocab_size]
    if len(beyond) == len(tokenizer) - config.vocab_size and not checkpoint.gguf:
        # Tokens that were added later; ``pretrained.load`` makes room for them.
        config.vocab_size = len(tokenizer)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{checkpoint.name}: its tokenizer has {len(tokenizer)} tokens, its model only "
            f"{config.vocab_size}; they do not belong together"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    # The tokenizer's own limit and the number of positions; some checkpoints state only one.
    check_max_length(recipe, min(tokenizer.model_max_length, positions.most_tokens(config)))
    tokenizer.model_max_length = recipe.model.max_length
    return tokenizer


def check_max_length(recipe: Recipe, most: int) -> None:
    """Checks that the model has positions for ``max_length`` tokens.

    Raises:
        UserError: it has not.
    """
    if recipe.model.max_length > most:
        where = recipe.where("model.max_length")
        raise UserError(
            f"{where}: max_length {recipe.model.max_length} is more than the model's {most}"
        )


def padding() -> str | bool:
    """Returns how a collator pads: to ``max_length`` on XLA, which compiles every shape anew."""
    return "max_length" if is_torch_xla_available() else True


def skip_padding(model: torch.nn.Module, recipe: Recipe) -> str:
    """Makes a model skip padding where the recipe allows it; returns the line for the log."""
    if attention := recipe.model.config.get(configs.ATTENTION):
        return f"batches padded: the recipe asks for {attention} attention"
    if recipe.training.get("neftune_noise_alpha"):
        return "batches padded: NEFTune scales its noise by the length of a batch"
    if recipe.model.padding_free:
        return padding_free.enable(model, recipe.training)
    return "batches padded: the recipe says so"


def eval_rows(splits: Mapping[str, Dataset], recipe: Recipe) -> int:
    """Returns the rows of an evaluation batch, whose tokens stay below ``EVAL_TOKENS``."""
    longest = max([1, *splits["validation"]["length"], *splits["test"]["length"]])
    if padding() == "max_length":
        longest = recipe.model.max_length
    return max(1, min(EVAL_ROWS, EVAL_TOKENS // longest))


def kept(length: int, budget: int, truncation: str, head_share: float) -> list[int]:
    """Returns the positions that truncation to ``budget`` tokens keeps, in order.

    ``head+tail`` keeps the first ``head_share`` of the budget and fills the rest from the end
    (Sun et al. 2019, section 5.3.1, with 128 of 510 tokens from the head).
    """
    if length <= budget:
        return list(range(length))
    head = {"head": budget, "tail": 0, "head+tail": round(budget * head_share)}[truncation]
    return [*range(head), *range(length - (budget - head), length)]


def encode(
    rows: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, model: Model
) -> dict[str, list[Any]]:
    """Texts (B) -> model inputs of at most ``max_length`` tokens a row, ``length``, ``truncated``.

    In a pair the longer text is truncated first. Special tokens are always kept, so every
    truncation works for every tokenizer.
    """
    encoded = tokenizer(rows["text"], rows.get("text_pair"), truncation=False, verbose=False)
    names = [name for name in encoded if name in tokenizer.model_input_names]
    out: dict[str, list[Any]] = {name: [] for name in names}
    out |= {"length": [], "truncated": []}
    for i, ids in enumerate(encoded["input_ids"]):
        row = {name: encoded[name][i] for name in names}
        if len(ids) > model.max_length and tokenizer.is_fast:
            part = encoded.sequence_ids(i)
            first = [p for p, s in enumerate(part) if s == 0]
            second = [p for p, s in enumerate(part) if s == 1]
            a, b = _kept_of_pair(len(first), len(second), len(ids), model)
            chosen = {first[p] for p in a} | {second[p] for p in b}
            keep = [p for p, s in enumerate(part) if s is None or p in chosen]
            row = {name: [values[p] for p in keep] for name, values in row.items()}
        elif len(ids) > model.max_length:
            # A tokenizer written in Python does not tell which text a token is of.
            texts = [rows[name][i] for name in ("text", "text_pair") if name in rows]
            parts = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            first, second = parts[0], parts[1] if parts[1:] else []
            a, b = _kept_of_pair(len(first), len(second), len(ids), model)
            pair = [second[p] for p in b] if parts[1:] else None
            row = cast(Any, tokenizer).prepare_for_model([first[p] for p in a], pair)
        for name in names:
            out[name].append(row[name])
        out["length"].append(len(out["input_ids"][-1]))
        out["truncated"].append(len(ids) > model.max_length)
    return out


def _kept_of_pair(
    first: int, second: int, length: int, model: Model
) -> tuple[list[int], list[int]]:
    """Returns the positions kept of two texts that with special tokens have ``length`` tokens."""
    budget = model.max_length - (length - first - second)
    # The shorter text keeps all its tokens up to half of the budget.
    share = max(budget - second, min(first, budget - budget // 2))
    a = kept(first, min(share, budget), model.truncation, model.head_share)
    return a, kept(second, budget - len(a), model.truncation, model.head_share)


def read_rows(given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns rows to predict: ``text``, and ``text_pair`` for pairs; an empty one keeps its place.

    Args:
        given: texts, one by one.
        file: a table with the recipe's text columns, or a .txt file with a text on each line,
            instead of ``given``.

    Raises:
        UserError: no rows, or a column is missing.
    """
    data = recipe.data
    names = {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})
    if file and Path(file).suffix != ".txt":
        cells = readers.read_columns(Path(file), list(names.values()), data)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    elif data.text_pair:
        raise UserError(f"{recipe.name}: labels pairs of texts; give them as a table with --file")
    else:
        lines = read_lines(Path(file), data.encoding) if file else given
        rows = [{"text": line} for line in lines]
    if not any(row["text"].strip() for row in rows):
        raise UserError("there is no text to label")
    return rows


def read_text(file: Path, encoding: str | None) -> str:
    """Returns a text file as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return dialects.decode(content, encoding, str(file))[0]


def read_lines(file: Path, encoding: str | None) -> list[str]:
    """Returns the lines of a text file, blank ones too."""
    text = read_text(file, encoding)
    # Not splitlines(), which also splits at characters that are part of a text.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def batches(
    rows: list[dict[str, Any]], tokenizer: Any, recipe: Recipe, size: int
) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
    """Yields row numbers and padded model inputs, the longest of each ``WINDOW`` rows first.

    No batch has more tokens, padding included, than ``size`` rows of ``max_length``, so memory
    does not grow with the number of rows.
    """
    names = [name for name in rows[0] if name.startswith("text")]
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        columns = {name: [row[name] for row in window] for name in names}
        encoded = encode(columns, tokenizer, recipe.model)
        inputs = [name for name in encoded if name not in {"length", "truncated"}]
        for chosen in within(encoded["length"], size * recipe.model.max_length):
            columns = {name: [encoded[name][i] for i in chosen] for name in inputs}
            yield start + chosen, tokenizer.pad(columns, return_tensors="pt")


def shared(function: Callable[[list[str]], list[Any]], given: list[str]) -> list[Any]:
    """Returns what ``function`` makes of texts, of which each process has a part of its own."""
    state = PartialState()
    count, rank = state.num_processes, state.process_index
    mine = range(rank, len(given), count)
    made = dict(zip(mine, function([given[i] for i in mine]), strict=True))
    parts = gather_object([made]) if count > 1 else [made]
    found = {number: each for part in parts for number, each in part.items()}
    return [found[number] for number in range(len(given))]


def exported(recipe: Recipe) -> list[str]:
    """Returns sentences on what an exported model takes, for its README."""
    model = recipe.model
    which = {"head": "beginning", "tail": "end", "head+tail": "beginning and end"}
    what = "Two texts" if recipe.data.text_pair else "A text"
    return [
        f"Input: what the tokenizer makes of a batch, padded. {what} of more than "
        f"{model.max_length} tokens keep the {which[model.truncation]}, as `finetune predict` "
        "cuts them.",
        PADDED,
    ]


def marked(text: str, spans: list[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """Returns the surroundings of some spans of a text, in parts that are marked or not.

    Args:
        spans: start, end and mark of each.

    Returns:
        Each part with its marks, with commas between them; "" for none.
    """
    around = SHOWN // 4
    shown = [(max(0, start - around), min(len(text), end + around)) for start, end, _ in spans]
    edges = sorted({edge for pair in [*shown, *(span[:2] for span in spans)] for edge in pair})
    out: list[tuple[str, str]] = []
    for start, end in itertools.pairwise([0, *edges, len(text)]):
        marks = [mark for a, b, mark in spans if a <= start and end <= b]
        if any(a <= start < end <= b for a, b in shown):
            out.append((text[start:end], ", ".join(dict.fromkeys(marks))))
        elif start < end:
            out.append((" … ", ""))
    return out


def shorten(text: str) -> str:
    """Returns the first ``SHOWN`` characters of a text, cut between words."""
    if len(text) <= SHOWN:
        return text
    return text[:SHOWN].rsplit(maxsplit=1)[0] + " …"
