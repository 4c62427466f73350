"""Extractive question answering: BERT and its relatives find the answer in a context.

- A long context is read in windows (``data.context_windows``); answers of all of them are ranked.
- Where training has questions without an answer, the threshold for none is chosen on validation.
- The score is SQuAD's F1, with exact match beside it (``evaluation.squad``).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

from finetune.data import answer_spans, context_windows, questions, sources
from finetune.data.batching import within
from finetune.errors import UserError
from finetune.evaluation import squad
from finetune.models import configs, pretrained, tuning
from finetune.models.speed import padding_free
from finetune.recipe import Recipe
from finetune.tasks import text, usage
from finetune.tasks.base import Labelled, Mistake, Task
from finetune.training.job import Job

if TYPE_CHECKING:
    import pandas

# The key of results.json's data section; null where every question has an answer.
THRESHOLD = "no_answer_threshold"
LOGITS = ("start_logits", "end_logits")
# Columns of a batch that are not the model's: per token, and per window.
OF_TOKENS, OF_WINDOWS = ("starts", "ends"), ("null", "longest")
# Questions that are encoded together for prediction.
WINDOW = 64


class QuestionAnswering(Task):
    """BERT and its relatives with a head for an answer's first and last token."""

    name = "question-answering"
    auto_model = AutoModelForQuestionAnswering
    auto_processor = AutoTokenizer

    def build(self, recipe: Recipe) -> Job:
        # Prediction starts without these.
        from finetune.data import corpus
        from finetune.evaluation import intervals, metrics
        from finetune.training import losses

        tuning.check(recipe)
        text.refuse_augmentation(recipe)
        metrics.refuse_extra(recipe, "question answering")
        method, where = recipe.tuning.method, recipe.where("tuning.method")
        if tuning.is_prompt(method):
            raise UserError(f"{where}: {method} shifts the tokens that answers are; take lora")
        checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
        data = corpus.load(recipe.data, corpus.QUESTIONS)
        config = configs.load_config(recipe, checkpoint, {"num_labels": len(LOGITS)})
        config = configs.override(config, recipe)
        tokenizer = _tokenizer(recipe, checkpoint, config)
        splits = {
            name: context_windows.dataset(getattr(data, name), tokenizer, recipe.model)
            for name in corpus.splits.SPLITS
        }
        splits["train"] = context_windows.learnable(splits["train"], data, recipe.model)
        model = pretrained.load(self.auto_model, checkpoint, config, recipe)
        model = tuning.apply(model, recipe, checkpoint)
        leave_out_padding(model)
        batching = text.skip_padding(model, recipe)
        labels = {n: squad.references(getattr(data, n)["label"]) for n in corpus.splits.SPLITS}
        unanswered = sum(not given for given in labels["train"])
        if unanswered:
            data.report["notes"].append(f"{unanswered:,} training questions without an answer")
        data.report[THRESHOLD] = 0.0 if unanswered else None
        # Without both kinds of questions, there is nothing to choose the threshold by.
        kinds = {bool(given) for given in labels["validation"]}
        calibrates = bool(unanswered) and len(kinds) == 2

        def collect(logits: Any, _: Any, split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
            contexts = getattr(data, split)["context"].tolist()
            most = recipe.model.max_answer_length
            ranked = squad.as_rows(answer_spans.rank_all(splits[split], logits, contexts, most))
            if calibrates and split == "validation":
                data.report[THRESHOLD] = squad.best_threshold(list(ranked), list(labels[split]))
            return ranked, labels[split]

        def predicted(outputs: Any) -> list[str]:
            return squad.texts(outputs, data.report[THRESHOLD])

        def difference(ours: Any, theirs: Any, given: Any) -> intervals.Metric:
            a, b = (squad.scores(predicted(each), given)[:, 0] for each in (ours, theirs))
            return intervals.difference(lambda r: a[r].mean(), lambda r: b[r].mean(), len(a))

        return Job(
            model=model,
            checkpoint=checkpoint,
            processor=tokenizer,
            collator=DataCollatorWithPadding(tokenizer, text.padding()),
            splits=splits,
            data=data,
            loss=losses.answer_loss,
            score=lambda outputs, given, n: squad.score(predicted(outputs), given, n),
            headline=squad.F1,
            baselines=lambda: squad.baselines(
                data.test["question"].tolist(), data.test["context"].tolist(), labels["test"]
            ),
            answers=self.answers,
            difference=difference,
            collect=collect,
            training={
                "label_names": ["labels"],
                "per_device_eval_batch_size": text.eval_rows(splits, recipe),
            },
            notes=[*configs.describe(recipe, config, checkpoint), batching],
            blocks=True,
            calibrates=calibrates,
        )

    # --- prediction ------------------------------------------------------------------------------

    def prepare(self, model: torch.nn.Module, recipe: Recipe) -> None:
        leave_out_padding(model)
        if recipe.model.padding_free:
            with torch.no_grad():
                padding_free.enable(model, {})

    def read_rows(self, given: list[str], file: str | None, recipe: Recipe) -> list[dict[str, Any]]:
        """Returns questions with their contexts, and the ids of a file that has some.

        Args:
            given: questions, one by one.
            file: a table or SQuAD's JSON, or a .txt file with a question on each line.
            recipe: ``data.context`` may name a text file that all questions are about, instead of
                a column.
        """
        data, about = recipe.data, Path(recipe.data.context)
        whole = text.read_text(about, data.encoding) if about.is_file() else None
        if file and Path(file).suffix != ".txt":
            rows = questions.read(Path(file), data, whole)
        elif whole is None:
            raise UserError(
                f"{recipe.name}: questions are about a context; add --context FILE.txt, or give a "
                "table of questions and contexts with --file"
            )
        else:
            asked = text.read_lines(Path(file), data.encoding) if file else given
            rows = [{"question": question, "context": whole} for question in asked]
        if all(self.is_empty(row) for row in rows):
            raise UserError("there is no question with a context")
        return rows

    def is_empty(self, row: dict[str, Any]) -> bool:
        return not (row["question"].strip() and row["context"].strip())

    def printed(self, row: dict[str, Any]) -> dict[str, Any]:
        # Many questions may be about one long context.
        return {name: cell for name, cell in row.items() if name != "context"}

    def fields(self, recipe: Recipe) -> dict[str, type]:
        return {"question": str, "context": str}

    def batches(
        self, rows: list[dict[str, Any]], processor: Any, recipe: Recipe, size: int
    ) -> Iterator[tuple[numpy.ndarray, dict[str, torch.Tensor]]]:
        """Yields windows: the numbers of their questions, and inputs of the model and of decoding.

        The latter are ``starts`` and ``ends`` (B, T), and ``null`` and ``longest`` (B,).
        """
        model = recipe.model
        for first in range(0, len(rows), WINDOW):
            part = rows[first : first + WINDOW]
            asked, contexts = ([row[name] for row in part] for name in ("question", "context"))
            made = context_windows.encode(asked, contexts, processor, model)
            inputs = [name for name in made if name in processor.model_input_names]
            for chosen in within(made["length"], size * model.max_length):
                batch = processor.pad(
                    {name: [made[name][i] for i in chosen] for name in inputs}, return_tensors="pt"
                )
                for name in OF_TOKENS:
                    batch[name] = torch.full(batch["input_ids"].shape, context_windows.OUTSIDE)
                    for row, i in zip(batch[name], chosen, strict=True):
                        row[: made["length"][i]] = torch.tensor(made[name][i])
                batch["null"] = torch.tensor([made["null"][i] for i in chosen])
                batch["longest"] = torch.full((len(chosen),), model.max_answer_length)
                yield first + numpy.array([made["number"][i] for i in chosen]), batch

    def forward(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[Any]:
        """Returns the candidates of each window and the score of no answer."""
        own = (*OF_TOKENS, *OF_WINDOWS)
        starts, ends, null, longest = (inputs[name].cpu().numpy() for name in own)
        out = model(**{name: value for name, value in inputs.items() if name not in own})
        logits = (getattr(out, name).float().cpu().numpy() for name in LOGITS)
        windows = zip(*logits, starts, ends, null, longest, strict=True)
        return [answer_spans.decode(*window) for window in windows]

    def join(self, parts: list[list[Any]], rows: list[dict[str, Any]]) -> numpy.ndarray:
        pairs = zip(parts, rows, strict=True)
        return squad.as_rows(answer_spans.rank(part, row["context"]) for part, row in pairs)

    def answers(self, outputs: Any, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [squad.answer(ranked, data[THRESHOLD]) for ranked in outputs]

    def labelled(self, file: str, recipe: Recipe, data: Mapping[str, Any]) -> Labelled:
        # Prediction starts without these.
        from finetune.data import corpus
        from finetune.evaluation import scoring

        frame, table = corpus.labelled(file, recipe.data, corpus.QUESTIONS, [])
        return Labelled(
            content=corpus.QUESTIONS,
            rows=frame.loc[:, ["question", "context"]].to_dict(orient="records"),
            frame=frame,
            table=table.rows.loc[frame.index],
            rejected=len(table.rejected),
            labels=squad.references(frame["label"]),
            score=lambda outputs, labels: squad.score(
                squad.texts(outputs, data[THRESHOLD]), labels, scoring.RESAMPLES
            ),
            values=_values,
        )

    # --- model card and report -------------------------------------------------------------------

    def usage(self, recipe: Recipe, results: dict[str, Any], folder: str) -> str:
        models, processors = self.auto_model.__name__, self.auto_processor.__name__
        model = recipe.model
        code = usage.load(models, processors, results, folder) + usage.answering(
            model.max_length,
            context_windows.stride(model),
            model.max_answer_length,
            results["data"][THRESHOLD],
        )
        note = "transformers 5 has no pipeline for question answering any more."
        return usage.section(code, results, [note])

    def exported(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        model = recipe.model
        return [
            "Input: what the tokenizer makes of questions and contexts, padded, at most "
            f"{model.max_length} tokens. `finetune predict` reads longer contexts in windows that "
            f"share {context_windows.stride(model)} tokens.",
            text.PADDED,
            "Output: `start_logits` and `end_logits` (B, T) of every token. The answer is the span "
            "of the context with the largest sum of the two.",
        ]

    def limits(self, recipe: Recipe, results: dict[str, Any]) -> list[str]:
        model = recipe.model
        found = [
            f"A context is read in windows of {model.max_length} tokens that share "
            f"{context_windows.stride(model)}; an answer has at most {model.max_answer_length} "
            "tokens, and is always a part of the context.",
            "F1 and exact match leave out English articles and punctuation, as SQuAD does, and "
            "divide words at spaces, which some languages do not write.",
        ]
        if results["data"][THRESHOLD] is None:
            found.append("It never saw a question without an answer, and answers every question.")
        return found

    def mistakes(
        self, rows: "pandas.DataFrame", data: Mapping[str, Any], most: int
    ) -> list[Mistake] | None:
        """The wrong answers with the highest score, with both answers marked in the context."""
        rows = rows.loc[_exact(rows) < 1].sort_values("score", ascending=False, kind="stable")
        return [_mistake(row) for row in rows.head(most).to_dict("records")]


TASK = QuestionAnswering()


def leave_out_padding(model: torch.nn.Module) -> None:
    """Makes padding tokens no possible answers, so that a window's loss is that of it alone.

    transformers' models give them logits, which would count in a batch of longer windows.
    """

    def mask(_: Any, arguments: Any, options: dict[str, Any], output: Any) -> Any:
        for name in LOGITS:
            least = torch.finfo(output[name].dtype).min
            output[name] = output[name].masked_fill(options["attention_mask"] == 0, least)
        return output

    model.register_forward_hook(mask, with_kwargs=True)


def _tokenizer(recipe: Recipe, checkpoint: sources.Checkpoint, config: Any) -> Any:
    tokenizer: Any = text.load_tokenizer(recipe, checkpoint, config)
    if not tokenizer.is_fast:
        raise UserError(f"{checkpoint.name}: has no fast tokenizer, which tells where tokens are")
    # Places in a window are counted from its first token.
    tokenizer.padding_side = "right"
    shared = context_windows.stride(recipe.model)
    room = context_windows.least_room(tokenizer, recipe.model)
    if shared >= room:
        raise UserError(
            f"{recipe.where('model.stride')}: windows of max_length {recipe.model.max_length} have "
            f"{room} tokens of context beside a long question, and cannot share {shared}; lower "
            "stride, or raise max_length"
        )
    return tokenizer


# --- answers -------------------------------------------------------------------------------------


def _exact(rows: "pandas.DataFrame") -> numpy.ndarray:
    return squad.scores(rows["prediction"].tolist(), list(squad.references(rows["label"])))[:, 1]


def _values(rows: "pandas.DataFrame") -> dict[str, numpy.ndarray]:
    """Numbers of predicted rows (N) by name: how right, how sure, how long."""
    labels = list(squad.references(rows["label"]))
    return {
        "answer F1": squad.scores(rows["prediction"].tolist(), labels)[:, 0],
        "confidence": rows["score"].to_numpy(float),
        "words in a question": rows["question"].str.split().str.len().to_numpy(float),
        "words in a context": rows["context"].str.split().str.len().to_numpy(float),
    }


def _mistake(row: dict[str, Any]) -> Mistake:
    """Returns a wrong answer with the excerpt of its context that has both answers."""
    truth = list(row["label"])
    spans = [(int(row["start"]), int(row["end"]), "predicted")] if row["prediction"] else []
    for given in truth[:1]:
        start = int(given["answer_start"])
        spans.append((start, start + len(given["text"]), "true"))
    parts = text.marked(row["context"], spans) if spans else [(text.shorten(row["context"]), "")]
    return Mistake(
        id=str(row["id"]),
        label=truth[0]["text"] if truth else squad.NEVER,
        prediction=row["prediction"] or squad.NEVER,
        confidence=float(row["score"]),
        marked={"question": [(row["question"], "")], "context": parts},
    )
