"""Embeddings for search: an encoder that puts queries near the passages that answer them.

- Training compares each query with all passages of its step (``training.in_batch``).
- Validation and test search all passages of the data, and of ``corpus`` where there is one, by the
  cosine of the embeddings. The score is NDCG@10, and BM25 and the encoder before training are
  baselines (``evaluation.ranking``).
- The saved folder is one of sentence-transformers, and of ``AutoModel``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy
import torch
from datasets import Dataset

from finetune.data import sources
from finetune.data.retrieval import RETRIEVAL
from finetune.evaluation import metrics, ranking
from finetune.models import devices, tuning
from finetune.recipe import Recipe
from finetune.tasks import encoders, searches, text, usage
from finetune.tasks.base import Row
from finetune.tasks.searches import SPLITS
from finetune.training import in_batch
from finetune.training.job import Job

# Texts of a batch that is embedded outside of training.
BATCH = 32


class Embedding(encoders.Encoder, searches.Search):
    """BERT and its relatives as encoders of queries and passages."""

    name = "embedding"

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without it.
        from finetune.data import corpus

        encoders.check(recipe, self.name)
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, RETRIEVAL)
        model, tokenizer, notes = encoders.load(recipe, checkpoint)
        frames = {name: getattr(data, name) for name in SPLITS}
        passages, truth = searches.candidates(data, recipe)
        queries = {name: frame["query"].tolist() for name, frame in frames.items()}
        given = [*passages, *(each for part in queries.values() for each in part)]
        texts, lengths, cut = encoders.encoded(given, tokenizer, recipe)
        if cut:
            data.report["notes"].append(cut)

        @torch.no_grad()
        def embedded(given: list[str]) -> Any:
            """Vectors (N, H) of texts, of which each process embeds a part."""

            def mine(part: list[str]) -> list[numpy.ndarray]:
                rows = [{"query": each} for each in part]
                if not rows:
                    return []
                return list(self._vectors(model, tokenizer, recipe, rows, BATCH, model.device))

            training = model.training
            model.eval()
            # The Trainer's precision is not that of the model outside of it.
            with devices.as_trained(model, recipe.training):
                found = text.shared(mine, given)
            model.train(training)
            return numpy.stack(found)

        numbers = searches.negatives(data, passages)
        if count := recipe.data.mined_negatives:
            with tuning.before_training(model, checkpoint):
                ours, theirs = embedded(queries["train"]), embedded(passages)
            for row, own, query, ranked in zip(
                numbers, truth["train"], ours, ranking.nearest(ours, theirs), strict=True
            ):
                row += in_batch.mined(ranked, own, theirs[sorted(own)] @ query, count)
        splits, start = {}, len(passages)
        for name in SPLITS:
            splits[name] = _rows(start, truth[name], numbers if name == "train" else None, lengths)
            start += len(truth[name])
        seed = int(recipe.training.get("seed", 0))

        def collect(_: Any, __: Any, split: str) -> tuple[Any, Any]:
            return ranking.nearest(embedded(queries[split]), embedded(passages)), truth[split]

        searched = f"searches {len(passages):,} passages"
        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=in_batch.PassageCollator(
                partial(tokenizer.pad, padding=text.padding(), return_tensors="pt"),
                texts,
                seed,
                any(numbers),
            ),
            splits=splits,
            data=data,
            loss=in_batch.InBatchLoss(model),
            score=ranking.score,
            headline=metrics.HEADLINE[self.name],
            baselines=lambda: {ranking.BM25: ranking.bm25(queries["test"], passages)},
            answers=lambda ranked, _: searches.answers(ranked, passages),
            difference=ranking.difference,
            # Rankings are scored, which ``collect`` makes.
            reduce=lambda _, labels: torch.zeros(len(labels), device=labels.device),
            collect=collect,
            training={
                "label_names": ["labels"],
                "remove_unused_columns": False,
                # The loss depends on how many passages are compared.
                "per_device_eval_batch_size": recipe.training.get("per_device_train_batch_size", 8),
                # A row's tokens are those of the passages that it draws.
                "include_num_input_tokens_seen": "no",
            },
            untuned=not checkpoint.is_new,
            notes=[searched, *notes],
            finish=partial(self.finish, recipe),
        )

    # --- prediction ------------------------------------------------------------------------------

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
        return [searches.found(each, passages) for each in ranking.nearest(vectors, theirs)]

    def _vectors(self, *given: Any) -> numpy.ndarray:
        return super().outputs(*given)

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[Row]:
        return [
            {"prediction": each if isinstance(each, list) else each.tolist()} for each in outputs
        ]

    # --- model card and report -------------------------------------------------------------------

    def usage(self, recipe: Recipe, results: Row, folder: str) -> str:
        example = (
            'queries = model.encode(["What is it about?"])\n'
            'passages = model.encode(["It is about search.", "It is about names."])\n'
            "print(model.similarity(queries, passages))"
        )
        return usage.searching("SentenceTransformer", example, results, folder)


TASK = Embedding()


def _rows(
    start: int, truth: numpy.ndarray, negatives: list[list[int]] | None, lengths: list[int]
) -> Dataset:
    """Returns a split's rows, which name texts by their numbers.

    Args:
        start: the number of the first query.
        truth: the numbers of each query's passages.
        negatives: those of its negatives, for training rows.
        lengths: of every text.
    """
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
