"""Embeddings for search: an encoder that puts queries near the passages that answer them.

- Training compares each query with all passages of its step (``training.in_batch``).
- Validation and test search all passages of the data, and of ``corpus`` where there is one, by the
  cosine of the embeddings. The score is NDCG@10, and BM25 and the encoder before training are
  baselines (``evaluation.ranking``).
- The saved folder is one of sentence-transformers, and of ``AutoModel``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from finetune.data import retrieval, sources, token_cache
from finetune.data.retrieval import RETRIEVAL
from finetune.errors import UserError
from finetune.evaluation import metrics, ranking
from finetune.models import configs, devices, embeddings, pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import text, usage
from finetune.tasks.base import Mistake, Row, Task
from finetune.training import in_batch
from finetune.training.job import Job

if TYPE_CHECKING:
    import pandas

PACKAGES = ("sentence_transformers", "bm25s")
# Texts of a batch that is embedded outside of training.
BATCH = 32
SPLITS = ("train", "validation", "test")


class Embedding(Task):
    """BERT and its relatives as encoders of queries and passages."""

    name = "embedding"
    auto_model = embeddings.AutoModelForEmbeddings
    auto_processor = AutoTokenizer
    hub_tag = "sentence-similarity"
    not_exported = "its test searches with a whole model; sentence-transformers exports the folder"

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without it.
        from finetune.data import corpus

        _check(recipe)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, RETRIEVAL)
        config = configs.override(configs.load_config(recipe, checkpoint, {}), recipe)
        config = embeddings.complete(config, checkpoint)
        tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = tuning.apply(model, recipe, checkpoint)
        batching = text.skip_padding(model, recipe)
        frames = {name: getattr(data, name) for name in SPLITS}
        passages = retrieval.candidates(frames.values(), recipe.data)
        texts, cut = _encoded(passages, frames, tokenizer, recipe)
        number = {passage: i for i, passage in enumerate(passages)}
        truth = {
            name: ranking.as_rows({number[passage] for passage in row} for row in frame["label"])
            for name, frame in frames.items()
        }

        @torch.no_grad()
        def embedded(given: list[str]) -> Any:
            """Vectors (N, H) of texts, of which each process embeds a part."""

            def mine(part: list[str]) -> list[numpy.ndarray]:
                rows = [{"query": each} for each in part]
                return list(self._vectors(model, tokenizer, recipe, rows, BATCH, model.device))

            training = model.training
            model.eval()
            # The Trainer's precision is not that of the model outside of it.
            with devices.as_trained(model, recipe.training):
                found = text.shared(mine, given)
            model.train(training)
            return numpy.stack(found)

        negatives = [json.loads(cell) for cell in data.train["negatives"]]
        numbers = [[number[passage] for passage in row] for row in negatives]
        if count := recipe.data.mined_negatives:
            with tuning.before_training(model, checkpoint):
                ours, theirs = embedded(data.train["query"].tolist()), embedded(passages)
            for row, own, query, ranked in zip(
                numbers, truth["train"], ours, ranking.nearest(ours, theirs), strict=True
            ):
                row += in_batch.mined(ranked, own, theirs[sorted(own)] @ query, count)
        splits, start = {}, len(passages)
        for name in SPLITS:
            splits[name] = _rows(start, truth[name], numbers if name == "train" else None, texts)
            start += len(truth[name])
        seed = int(recipe.training.get("seed", 0))

        def collect(_: Any, __: Any, split: str) -> tuple[Any, Any]:
            if not len(frames[split]):
                return ranking.as_rows([]), truth[split]
            queries = embedded(frames[split]["query"].tolist())
            return ranking.nearest(queries, embedded(passages)), truth[split]

        def answers(outputs: Any, _: Any) -> list[Row]:
            return [{"prediction": _found(ranked, passages)} for ranked in outputs]

        searched = f"searches {len(passages):,} passages"
        if cut:
            longest = f"max_length {recipe.model.max_length}"
            data.report["notes"].append(f"{cut:,} of {len(texts):,} texts cut to {longest}")
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=in_batch.PassageCollator(tokenizer, texts, seed, any(numbers)),
            splits=splits,
            data=data,
            loss=in_batch.InBatchLoss(model),
            score=ranking.score,
            headline=metrics.HEADLINE[self.name],
            baselines=lambda: {
                ranking.BM25: ranking.bm25(frames["test"]["query"].tolist(), passages)
            },
            answers=answers,
            difference=ranking.difference,
            # Rankings are scored, which ``collect`` makes.
            reduce=lambda _, labels: torch.zeros(len(labels), device=labels.device),
            collect=collect,
            training={
                "label_names": ["labels"],
                "remove_unused_columns": False,
                # A row's tokens are those of the passages that it draws.
                "include_num_input_tokens_seen": "no",
            },
            untuned=not checkpoint.is_new,
            notes=[searched, *configs.describe(recipe, config, checkpoint), batching],
            finish=partial(self.finish, recipe),
        )

    def finish(self, recipe: Recipe, folder: Path) -> None:
        # An adapter gets them when it is merged.
        if not (folder / "adapter_config.json").is_file():
            config = AutoConfig.from_pretrained(folder)
            embeddings.save_modules(config, recipe.model.max_length, folder)

    # --- prediction ------------------------------------------------------------------------------

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        """Returns queries, each with the passages to search where the recipe names a ``corpus``."""
        single = replace(recipe.data, text=recipe.data.query, text_pair=None)
        rows = text.read_rows(given, file, replace(recipe, data=single))
        found: list[Row] = [{"query": row["text"]} for row in rows]
        if recipe.data.corpus:
            passages = list(retrieval.read_corpus(recipe.data.corpus, recipe.data).values())
            found = [row | {"corpus": passages} for row in found]
        return found

    def printed(self, row: Row) -> Row:
        return {"query": row["query"]}

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"query": str}

    def batches(self, rows: list[Row], processor: Any, recipe: Recipe, size: int) -> Any:
        return text.batches([{"text": row["query"]} for row in rows], processor, recipe, size)

    def outputs(
        self,
        model: Any,
        processor: Any,
        recipe: Recipe,
        rows: list[Row],
        size: int,
        device: torch.device,
        forward: Callable[..., list[Any]] | None = None,
    ) -> Any:
        """Returns embeddings (N, H), or for rows with a corpus the nearest passages of each."""
        vectors = self._vectors(model, processor, recipe, rows, size, device, forward)
        passages = rows[0].get("corpus")
        if passages is None:
            return vectors
        given = [{"query": passage} for passage in passages]
        theirs = self._vectors(model, processor, recipe, given, size, device, forward)
        return [_found(ranked, passages) for ranked in ranking.nearest(vectors, theirs)]

    def _vectors(self, *given: Any) -> numpy.ndarray:
        return super().outputs(*given)

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[Row]:
        return [
            {"prediction": each if isinstance(each, list) else each.tolist()} for each in outputs
        ]

    # --- model card and report -------------------------------------------------------------------

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        notes = []
        if usage.is_adapter(results):
            notes = [
                "An adapter becomes a folder of sentence-transformers when it is merged: "
                f"`finetune merge {Path(folder).parent} --output {folder}-merged`."
            ]
            folder = f"{folder}-merged"
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({usage.quoted(folder)})\n"
            'queries = model.encode(["What is it about?"])\n'
            'passages = model.encode(["It is about search.", "It is about names."])\n'
            "print(model.similarity(queries, passages))"
        )
        return usage.section(code, results, notes)

    def limits(self, recipe: Recipe, results: Row) -> list[str]:
        return [
            f"Of a text it reads {recipe.model.max_length} tokens at most "
            f"({recipe.model.truncation} kept; sentence-transformers keeps the head).",
            "A passage counts as wrong unless the data names it for the query, although it may "
            "answer it, too.",
        ]

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """The queries whose relevant passages come last."""
        placed = []
        for row in rows.to_dict("records"):
            found = [each["passage"] for each in row["prediction"]]
            right = set(row["label"])
            place = next((i for i, each in enumerate(found, 1) if each in right), len(found) + 1)
            if place > 1:
                placed.append((place, row, found))
        placed.sort(key=lambda each: -each[0])
        return [
            Mistake(
                id=str(row["id"]),
                label=text.shorten(" | ".join(row["label"])),
                prediction=text.shorten(found[0]),
                confidence=f"place {place}" if place <= len(found) else f"not in {len(found)}",
                text=row["query"],
            )
            for place, row, found in placed[:most]
        ]


TASK = Embedding()


def _check(recipe: Recipe) -> None:
    """Checks what does not need the data.

    Raises:
        UserError: a package is missing, or a method or batch does not fit.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{recipe.name}: {', '.join(missing)} is not installed: "
            "pip install 'finetune-recipes[search]'"
        )
    tuning.check(recipe)
    text.refuse_augmentation(recipe)
    metrics.refuse_extra(recipe, "embedding")
    method, where = recipe.tuning.method, recipe.where("tuning.method")
    if method == "head" or tuning.is_prompt(method):
        reason = "has no head to train" if method == "head" else f"gets no tokens by {method}"
        raise UserError(f"{where}: an encoder of embeddings {reason}; take lora, or full")
    if recipe.auto_batch or recipe.training.get("gradient_accumulation_steps", 1) > 1:
        raise UserError(
            f"{recipe.where('training.gradient_accumulation_steps')}: queries are compared with "
            "the passages of one batch, which cannot be divided; set per_device_train_batch_size, "
            "and activation_checkpointing: true if memory is short"
        )


def _encoded(
    passages: list[str], frames: dict[str, "pandas.DataFrame"], tokenizer: Any, recipe: Recipe
) -> tuple[Dataset, int]:
    """Returns all passages, then the queries of each split, as token ids; and how many were cut."""
    import pandas

    model = recipe.model
    queries = [query for frame in frames.values() for query in frame["query"]]
    rows = pandas.DataFrame({"id": "", "text": [*passages, *queries]}, dtype=object)
    keys = (model.max_length, model.truncation, model.head_share)

    def encode(part: dict[str, list[str]]) -> dict[str, list[Any]]:
        return text.encode(part, tokenizer, model)

    found = token_cache.once(rows, "", tokenizer, encode, "search", *keys)
    return found, sum(found["truncated"])


def _rows(
    start: int, truth: numpy.ndarray, negatives: list[list[int]] | None, texts: Dataset
) -> Dataset:
    """Returns a split's rows, which name texts by their numbers.

    Args:
        start: the number of the first query.
        truth: the numbers of each query's passages.
        negatives: those of its negatives, for training rows.
    """
    lengths = texts["length"][:]
    positives = [sorted(row) for row in truth]
    columns: dict[str, Any] = {
        "query": [start + i for i in range(len(truth))],
        "positives": positives,
        "length": [lengths[start + i] + lengths[own[0]] for i, own in enumerate(positives)],
    }
    if negatives is not None:
        rows = list(range(len(truth)))
        columns |= {"negatives": negatives, "row": rows, "epoch": [0] * len(rows)}
    return Dataset.from_dict(columns)


def _found(ranked: ranking.Ranked, passages: list[str]) -> list[Row]:
    """Returns the first passages of a ranking with their scores."""
    pairs = zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)
    best = list(pairs)[: ranking.FIRST]
    return [{"passage": passages[item], "score": round(score, 6)} for item, score in best]
