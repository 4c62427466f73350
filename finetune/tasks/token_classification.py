"""Token classification: the names in a text, or other spans of its words.

- A word gets the tag of its first piece; its other pieces have no loss.
- A text of more than ``max_length`` tokens is read in overlapping windows. Each word is learned and
  predicted in the one window where it has the most context, so every word counts exactly once.
- A row to predict that is a plain text is split into words as ``pipeline("token-classification",
  aggregation_strategy="first")`` does, and its entities are those of the pipeline.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from datasets import Dataset
from scipy.special import softmax
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
)

from finetune.data import readers, sources, table_files, tagged_texts, tags, word_pieces
from finetune.data.batching import within
from finetune.data.packing import IGNORED
from finetune.data.tagged_texts import TAGGED
from finetune.data.word_pieces import NO_PIECE, NO_WORD, WORD_COLUMNS
from finetune.errors import UserError
from finetune.evaluation import entities, metrics
from finetune.evaluation.entities import TaggedWords, as_rows
from finetune.models import configs, pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import text
from finetune.tasks.base import Labelled, Mistake, Task
from finetune.tasks.usage import Example
from finetune.training import losses
from finetune.training.job import Job

if TYPE_CHECKING:
    import pandas


class TokenClassification(Task):
    """BERT and its relatives with a head on every token."""

    name = "token-classification"
    auto_model = AutoModelForTokenClassification
    auto_processor = AutoTokenizer

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without these.
        from finetune.data import corpus
        from finetune.evaluation import entity_baselines

        tuning.check(recipe)
        text.refuse_augmentation(recipe)
        metrics.refuse_extra(recipe, "token classification")
        if tuning.is_prompt(recipe.tuning.method):
            where, method = recipe.where("tuning.method"), recipe.tuning.method
            raise UserError(f"{where}: {method} adds tokens, which have no word; use lora")
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, TAGGED)
        names = data.label_names
        labels = {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
        config = configs.load_config(recipe, checkpoint, {"num_labels": len(names), **labels})
        config = configs.override(config, recipe)
        tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
        if not tokenizer.is_fast:
            raise UserError(
                f"{checkpoint.name}: its tokenizer, written in Python, does not tell which words "
                "its tokens are of; take a checkpoint with a tokenizer.json"
            )
        truth = {
            name: _codes(getattr(data, name), names) for name in ("train", "validation", "test")
        }
        splits = {
            name: _encoded(getattr(data, name), codes, tokenizer, recipe.model.max_length)
            for name, codes in truth.items()
        }
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = tuning.apply(model, recipe, checkpoint)
        notes = [
            *configs.describe_head(checkpoint, data),
            *configs.describe(recipe, config, checkpoint),
        ]
        long = len(splits["train"]) - len(data.train)
        if long:
            notes.append(f"long texts read in overlapping windows, {long:,} more rows of train")

        def collect(outputs: numpy.ndarray, _: Any, split: str) -> tuple[Any, Any]:
            rows = splits[split]
            parts: list[list[TaggedWords]] = [[] for _ in truth[split]]
            for logits, row, *columns in zip(
                outputs, rows["row"], *(rows[name] for name in WORD_COLUMNS), strict=True
            ):
                parts[row].append(_tagged(logits, *map(numpy.array, columns)))
            return _joined(parts), truth[split]

        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=DataCollatorForTokenClassification(
                tokenizer, text.padding(), label_pad_token_id=IGNORED
            ),
            splits=splits,
            data=data,
            loss=losses.MaskedTokenLoss(losses.smoothing(recipe)),
            label_smoothing=losses.smoothing(recipe),
            score=partial(entities.score, names=names),
            headline=metrics.HEADLINE[self.name],
            baselines=lambda: entity_baselines.for_words(data),
            answers=self.answers,
            difference=partial(entities.difference, names),
            collect=collect,
            training={"per_device_eval_batch_size": text.eval_rows(splits, recipe)},
            notes=[*notes, text.skip_padding(model, recipe)],
            blocks=bool(long),
        )

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
        if file is None or table_files.kind(Path(file)) in table_files.TEXT:
            return text.read_rows(given, file, recipe)
        table = readers.read_table(file, recipe.data)
        cells = table.column(tagged_texts.named(table, recipe.data).text, "text")
        return [_row(cell, f"{file}:{line}") for line, cell in cells.items()]

    def labelled(self, file: str, recipe: Recipe, data: Mapping[str, Any]) -> Labelled:
        # Prediction starts without it.
        from finetune.data import corpus

        names = data["label_names"]
        frame, table = corpus.labelled(file, recipe.data, TAGGED, names)
        return Labelled(
            content=TAGGED,
            rows=[
                {"text": a, "words": b} for a, b in zip(frame["text"], frame["words"], strict=True)
            ],
            frame=frame,
            table=table.rows.loc[frame.index],
            rejected=len(table.rejected),
            labels=_codes(frame, names),
            score=partial(entities.score, names=names),
            values=_values,
        )

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"text": str}

    def batches(
        self, rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        budget = size * recipe.model.max_length
        for start in range(0, len(rows), text.WINDOW):
            part = rows[start : start + text.WINDOW]
            columns = {name: [row.get(name) for row in part] for name in ("text", "words")}
            encoded = word_pieces.encode(columns, processor, recipe.model.max_length)
            inputs = [name for name in encoded if name in processor.model_input_names]
            numbers = start + numpy.array(encoded["row"])
            for chosen in within(encoded["length"], budget):
                batch = {name: [encoded[name][i] for i in chosen] for name in inputs}
                words = {n: _padded([encoded[n][i] for i in chosen]) for n in WORD_COLUMNS}
                yield numbers[chosen], {**processor.pad(batch, return_tensors="pt"), **words}

    def forward(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
        given = {name: value for name, value in inputs.items() if name not in WORD_COLUMNS}
        logits = model(**given).logits.float().cpu().numpy()
        columns = [inputs[name].cpu().numpy() for name in WORD_COLUMNS]
        return [_tagged(*row) for row in zip(logits, *columns, strict=True)]

    def join(self, parts: list[list[TaggedWords]], rows: list[dict[str, Any]]) -> Any:
        return _joined(parts)

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"prediction": _predicted(words, data["label_names"])} for words in outputs]

    def example(self, recipe: Recipe, results: dict[str, Any]) -> Example:
        arguments = ['"Ada Lovelace was born in London."', 'aggregation_strategy="first"']
        return Example("find_entities", arguments)

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return [
            "Input: what the tokenizer makes of a batch, padded. `finetune predict` reads a text of"
            f" more than {recipe.model.max_length} tokens in overlapping windows.",
            text.PADDED,
            "Output: `logits` (B, T, K) of every token, for the K tags below; the tag of a word is "
            "that of its first token.",
        ]

    def limits(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        return [
            f"The pipeline cuts a text at {recipe.model.max_length} tokens; `finetune predict` "
            "reads all of it, in overlapping windows.",
            "Training and test tag the words as the data has them. The pipeline also splits a word "
            "at punctuation inside of it, and tags each part.",
        ]

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """The texts with the most entities that are missed or wrong."""
        found = []
        for row in rows.to_dict("records"):
            truth, predicted = _spans(row["label"]), _spans(row["prediction"])
            missed, wrong = len(truth - predicted), len(predicted - truth)
            if missed or wrong:
                marked = {
                    name: _marked(row["text"], spans)
                    for name, spans in (("true", truth), ("predicted", predicted))
                }
                shown = Mistake(
                    id=str(row["id"]),
                    label=_names(truth),
                    prediction=_names(predicted),
                    confidence=f"{missed} missed, {wrong} wrong",
                    text=row["text"],
                    marked=marked,
                )
                found.append((missed + wrong, shown))
        found.sort(key=lambda pair: -pair[0])
        return [shown for _, shown in found[:most]]


TASK = TokenClassification()


def _codes(frame: "pandas.DataFrame", names: Sequence[str]) -> numpy.ndarray:
    """Returns the true tags of each row's words, (N,) of (W,) int."""
    index = {name: k for k, name in enumerate(names)}
    rows = zip(frame["words"], frame["label"], strict=True)
    return as_rows([numpy.array([index[tag] for tag in tagged_texts.word_tags(*r)]) for r in rows])


def _encoded(
    frame: "pandas.DataFrame", codes: numpy.ndarray, tokenizer: Any, max_length: int
) -> Dataset:
    """Returns the windows of a split's rows, with the labels of their pieces."""
    if not len(frame):
        # Tokenizers fail on an empty list of texts.
        columns = ("input_ids", "length", "row", *WORD_COLUMNS, "labels")
        return Dataset.from_dict({name: [] for name in columns})
    out = word_pieces.encode(
        {name: list(frame[name]) for name in ("text", "words")}, tokenizer, max_length
    )
    out["labels"] = []
    pairs = zip(out["row"], out.pop("number"), out["first"], out["length"], strict=True)
    for row, numbers, first, length in pairs:
        labels = [IGNORED] * length
        # Of two words that share a piece, the first counts.
        for number, place in reversed(list(zip(numbers, first, strict=True))):
            if place >= 0:
                labels[place] = int(codes[row][number])
        out["labels"].append(labels)
    return Dataset.from_dict(out)


def _joined(parts: list[list[TaggedWords]]) -> Any:
    """Returns the words of each text, given those of each of its windows."""
    out = []
    for part in parts:
        places = numpy.concatenate([words.places for words in part])
        order = numpy.argsort(places[:, 0], kind="stable")
        logits = numpy.concatenate([words.logits for words in part])
        out.append(TaggedWords(places[order], logits[order]))
    return as_rows(out)


def _tagged(
    logits: numpy.ndarray, first: numpy.ndarray, start: numpy.ndarray, end: numpy.ndarray
) -> TaggedWords:
    """Returns the words of a window, given its logits (T, K) and columns (W,) of its words.

    A word without a piece is outside of entities.
    """
    words = first != NO_WORD
    first = first[words].astype(int)
    found = logits[numpy.maximum(first, 0)]
    # Less would be a matter of precision; O is the first tag.
    found[first == NO_PIECE] = numpy.eye(1, logits.shape[1])[0] * 100
    return TaggedWords(numpy.stack([start[words], end[words]], 1).astype(int), found)


def _padded(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[NO_WORD] * (longest - len(row))] for row in rows])


def _predicted(words: TaggedWords, names: list[str]) -> list[dict[str, Any]]:
    """Returns the predicted entities: start, end, label and score, the mean of its words'."""
    found = tags.entities(words.tags(names))
    spans = tagged_texts.spans(found, words.places.tolist())
    best = softmax(words.logits, axis=1).max(1, initial=0.0)
    return [
        {**span, "score": round(float(best[first:end].mean()), 6)}
        for span, (_, first, end) in zip(spans, found, strict=True)
    ]


def _row(cell: Any, place: str) -> dict[str, Any]:
    """Returns a row to predict: a text, or tokens as a text with known words."""
    if isinstance(cell, str) or readers.is_missing(cell):
        return {"text": cell or ""}
    try:
        content, words = tagged_texts.of_tokens(cell)
    except tagged_texts.Unusable as reason:
        raise UserError(f"{place}: {reason}") from None
    return {"text": content, "words": json.dumps(words)}


def _spans(cell: Any) -> set[tuple[int, int, str]]:
    return {(int(each["start"]), int(each["end"]), str(each["label"])) for each in cell}


def _names(spans: set[tuple[int, int, str]]) -> str:
    return ", ".join(label for _, _, label in sorted(spans)) or "none"


def _marked(content: str, spans: set[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """Returns a text in parts, each with the label of the entity that it is, or an empty one."""
    parts, at = [], 0
    for start, end, label in sorted(spans):
        parts += [(content[at:start], ""), (content[start:end], label)]
        at = end
    return [part for part in [*parts, (content[at:], "")] if part[0]]


def _values(rows: "pandas.DataFrame") -> dict[str, numpy.ndarray]:
    """Numbers of predicted rows (N) by name: whether all is right, how long, how many entities."""
    pairs = zip(rows["label"], rows["prediction"], strict=True)
    return {
        "all entities right": numpy.array([_spans(a) == _spans(b) for a, b in pairs], float),
        "words in a text": numpy.array([len(json.loads(w)) for w in rows["words"]], float),
        "entities in a text": numpy.array([len(cell) for cell in rows["prediction"]], float),
    }
