"""Reranking: a cross-encoder reads a query with a passage and tells whether it answers it.

- BM25 finds ``CANDIDATES`` passages for each query, and the model puts them in order. Its scores
  are compared with BM25's own order.
- A training row is a query with one of its passages, or with a negative: given ones, and the
  ``mined_negatives`` that BM25 ranks first.
- The saved folder is a classifier with one output, which ``CrossEncoder`` loads.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset
from scipy.special import expit
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from finetune.data import readers, sources, token_cache
from finetune.data.retrieval import RETRIEVAL
from finetune.errors import UserError
from finetune.evaluation import metrics, ranking
from finetune.evaluation.ranking import Ranked
from finetune.models import configs, pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import searches, text, usage
from finetune.tasks.base import Row
from finetune.training import losses
from finetune.training.job import Job

CANDIDATES = 20
# A passage is relevant or not: yes or no for the one label.
LOSS = "multi_label_classification"


class Reranking(searches.Search):
    """BERT and its relatives that read a query and a passage together."""

    name = "reranking"
    auto_model = AutoModelForSequenceClassification
    auto_processor = AutoTokenizer
    hub_tag = "text-ranking"

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without it.
        from finetune.data import corpus

        searches.check(recipe, self.name)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, RETRIEVAL)
        config = configs.load_config(recipe, checkpoint, {"num_labels": 1})
        config = configs.override(config, recipe)
        tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
        passages, truth = searches.candidates(data, recipe)
        queries = {name: getattr(data, name)["query"].tolist() for name in searches.SPLITS}
        ranked = {name: _first(queries[name], passages) for name in ("validation", "test")}
        numbers = searches.negatives(data, passages)
        if count := recipe.data.mined_negatives:
            best = ranking.bm25(queries["train"], passages)
            for row, own, each in zip(numbers, truth["train"], best, strict=True):
                row += [item for item in each.items.tolist() if item not in own][:count]
        if not any(numbers):
            raise UserError(
                f"{recipe.where('data.mined_negatives')}: a reranker learns from passages that are "
                "wrong, too; set mined_negatives: 4, or name a column of them by negative"
            )
        given = {name: [each.items.tolist() for each in rows] for name, rows in ranked.items()}
        given["train"] = [
            [*sorted(own), *dict.fromkeys(row)]
            for own, row in zip(truth["train"], numbers, strict=True)
        ]
        splits, cut = {}, 0
        for name in searches.SPLITS:
            splits[name], more = _encoded(
                queries[name], given[name], truth[name], passages, tokenizer, recipe
            )
            cut += more
        if cut:
            longest = f"max_length {recipe.model.max_length}"
            data.report["notes"].append(f"{cut:,} queries with a passage cut to {longest}")
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = tuning.apply(model, recipe, checkpoint)

        def collect(logits: numpy.ndarray, _: Any, split: str) -> tuple[Any, Any]:
            return _grouped(logits, given[split]), truth[split]

        smoothing = losses.smoothing(recipe)
        most = min(CANDIDATES, len(passages))
        searched = f"reorders {most} of {len(passages):,} passages for each query"
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=DataCollatorWithPadding(tokenizer, text.padding()),
            splits=splits,
            data=data,
            loss=losses.ClassificationLoss(LOSS, smoothing),
            label_smoothing=smoothing,
            score=ranking.score,
            headline=metrics.HEADLINE[self.name],
            baselines=lambda: {ranking.BM25: ranked["test"]},
            answers=lambda found, _: searches.answers(found, passages),
            difference=ranking.difference,
            collect=collect,
            training={
                "label_names": ["labels"],
                "per_device_eval_batch_size": text.eval_rows(splits, recipe),
            },
            notes=[
                searched,
                *configs.describe(recipe, config, checkpoint),
                text.skip_padding(model, recipe),
            ],
            blocks=True,
        )

    # --- prediction ------------------------------------------------------------------------------

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[Row]:
        """Returns queries to search a ``corpus`` for, or a table's queries with a passage each."""
        if recipe.data.corpus:
            return super().read_rows(given, file, recipe)
        if not file or Path(file).suffix == ".txt":
            raise UserError(
                f"{recipe.name}: scores queries with passages; add --corpus FILE to search its "
                "passages, or give a table of both with --file"
            )
        names = {"query": recipe.data.query, "passage": recipe.data.passage}
        cells = readers.read_columns(Path(file), list(names.values()), recipe.data)
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"query": str, "passage": str}

    def batches(
        self, rows: list[Row], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        pairs = [{"text": row["query"], "text_pair": row["passage"]} for row in rows]
        return text.batches(pairs, processor, recipe, size)

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
        """Returns logits (N, 1) of rows, or for queries with a corpus the best passages of each."""
        passages = rows[0].get("corpus")
        if passages is None:
            return super().outputs(model, processor, recipe, rows, size, device, forward)
        queries = [row["query"] for row in rows]
        given = [each.items.tolist() for each in _first(queries, passages)]
        pairs = [
            {"query": query, "passage": passages[item]}
            for query, items in zip(queries, given, strict=True)
            for item in items
        ]
        logits = super().outputs(model, processor, recipe, pairs, size, device, forward)
        return [searches.found(each, passages) for each in _grouped(logits, given)]

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[Row]:
        return [
            {"prediction": each if isinstance(each, list) else round(float(expit(each[0])), 6)}
            for each in outputs
        ]

    # --- model card ------------------------------------------------------------------------------

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        return usage.searching(
            "CrossEncoder",
            'print(model.predict([("What is it about?", "It is about search.")]))',
            results,
            folder,
        )


TASK = Reranking()


def _first(queries: list[str], passages: list[str]) -> numpy.ndarray:
    """Returns the candidates of each query, (Q,) of ``Ranked``."""
    return ranking.as_rows(
        Ranked(each.items[:CANDIDATES], each.scores[:CANDIDATES])
        for each in ranking.bm25(queries, passages)
    )


def _grouped(logits: numpy.ndarray, given: list[list[int]]) -> numpy.ndarray:
    """Returns the candidates of each query in the order of their logits (N, 1).

    Args:
        given: the candidates of each query, N in all.
    """
    found, at = [], 0
    for items in given:
        scores = expit(logits[at : at + len(items), 0].astype(float))
        order = numpy.argsort(-scores, kind="stable")
        found.append(Ranked(numpy.array(items, int)[order], scores[order]))
        at += len(items)
    return ranking.as_rows(found)


def _encoded(
    queries: list[str],
    given: list[list[int]],
    truth: numpy.ndarray,
    passages: list[str],
    tokenizer: Any,
    recipe: Recipe,
) -> tuple[Dataset, int]:
    """Returns rows of queries with each of their passages, and how many were cut."""
    import pandas

    model = recipe.model
    pairs = [(row, item) for row, items in enumerate(given) for item in items]
    if not pairs:
        return Dataset.from_dict({"input_ids": [], "length": [], "labels": []}), 0
    texts = {
        "id": "",
        "text": [queries[row] for row, _ in pairs],
        "text_pair": [passages[item] for _, item in pairs],
    }

    def encode(part: dict[str, list[str]]) -> dict[str, list[Any]]:
        return text.encode(part, tokenizer, model)

    keys = (model.max_length, model.truncation, model.head_share)
    frame = pandas.DataFrame(texts, dtype=object)
    rows = token_cache.once(frame, "", tokenizer, encode, "reranking", *keys)
    cut = sum(rows["truncated"])
    labels = [[float(item in truth[row])] for row, item in pairs]
    return rows.remove_columns("truncated").add_column("labels", labels), cut
