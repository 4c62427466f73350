"""Compares an exported model with its run's torch model on the run's test rows."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy
import torch
from transformers.trainer_pt_utils import nested_concat

from finetune.data.batching import within
from finetune.errors import UserError
from finetune.evaluation import metrics, scoring
from finetune.export.engine import Engine
from finetune.report import wording
from finetune.training.job import Job

# By how much logits in full precision may differ, and relative to the largest logit if that is
# above 1: float32 holds seven digits.
TOLERANCE = 1e-4
# A point: of a score that is at most 1, or of the run's value where there is no such bound.
POINT = 0.01
BATCH = 32


def batches(job: Job, split: str, size: int) -> list[numpy.ndarray]:
    """Returns the row numbers of batches of about ``size`` of the longest rows, longest first."""
    lengths = job.splits[split]["length"]
    return list(within(lengths, size * max(1, *lengths)))


def collate(job: Job, split: str, numbers: list[int]) -> dict[str, torch.Tensor]:
    """Returns a batch of a split's rows as an evaluation sees them, training rows too."""
    rows = [job.splits[split][int(i)] for i in numbers]
    # The collators change training rows: augmentation, other masks in each epoch.
    rows = [{**row, "training": False} if "training" in row else row for row in rows]
    if job.training.get("remove_unused_columns", True):
        # As the Trainer does: the places of words in a text, for example, are only for scoring.
        used = {*inspect.signature(job.model.forward).parameters, *_labels(job)}
        rows = [{name: cell for name, cell in row.items() if name in used} for row in rows]
    batch = job.collator(rows)
    if "attention_mask" in job.processor.model_input_names:
        # Documents of a causal model are padded at their end, which no earlier token attends to.
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    return batch


@torch.inference_mode()
def compare(job: Job, model: torch.nn.Module, engine: Engine) -> dict[str, Any]:
    """Returns how an export does on the test rows, and the torch model beside it.

    - ``largest_difference`` of any logit, and the ``largest_logit``
    - ``metrics`` and ``torch_metrics``: the headline with its interval
    - ``difference`` of both, paired by row, with its interval
    - ``rows_per_second`` and ``torch_rows_per_second``, for the same batches and threads

    Args:
        model: the run's model on the CPU, as `finetune predict` loads it.
    """
    size = job.training.get("per_device_eval_batch_size", BATCH)
    runs: list[tuple[Callable[..., Any], list[float], list[Any]]]
    runs = [(engine, [], []), (model, [], [])]
    labels, order, largest, most = [], [], 0.0, 0.0
    for numbers in batches(job, "test", size):
        batch = collate(job, "test", list(numbers))
        given = tuple(batch[name] for name in _labels(job))
        inputs = {name: batch[name] for name in engine.inputs}
        found = []
        for call, seconds, outputs in runs:
            if not seconds:
                # The first call of a shape allocates memory and compiles.
                call(**inputs)
            start = time.perf_counter()
            made = call(**inputs)
            seconds.append(time.perf_counter() - start)
            logits = tuple(getattr(made, name).float() for name in engine.outputs)
            named = zip(engine.outputs, logits, strict=True)
            found.append([_of_tokens(*pair, inputs) for pair in named])
            if job.reduce:
                logits = (job.reduce(_alone(logits), _alone(given)),)
            outputs.append(tuple(each.numpy() for each in logits))
        for ours, theirs in zip(*found, strict=True):
            largest = max(largest, float((ours - theirs).abs().max()))
            most = max(most, float(theirs.abs().max()))
        labels.append(tuple(each.numpy() for each in given))
        order.append(numbers)
    back = numpy.argsort(numpy.concatenate(order))
    known = _alone(tuple(part[back] for part in _joined(labels)))
    scored, collected = [], []
    for _, _, outputs in runs:
        every = _alone(tuple(part[back] for part in _joined(outputs)))
        rows, kept = job.collect(every, known, "test")
        collected.append((rows, kept))
        scored.append(job.score(rows, kept, scoring.RESAMPLES)["metrics"][job.headline])
    (ours, kept), (theirs, _) = collected
    count = len(job.data.test)
    speeds = [round(count / sum(seconds), 2) for _, seconds, _ in runs]
    return {
        "rows": count,
        "largest_difference": largest,
        "largest_logit": most,
        "metrics": {job.headline: scored[0]},
        "torch_metrics": {job.headline: scored[1]},
        "difference": job.difference(ours, theirs, kept),
        "rows_per_second": speeds[0],
        "torch_rows_per_second": speeds[1],
        "threads": torch.get_num_threads(),
    }


def _labels(job: Job) -> list[str]:
    """Returns the names of what a batch has for the loss and the scores."""
    return job.training.get("label_names", ["labels"])


def _alone(parts: tuple[Any, ...]) -> Any:
    """Returns what the Trainer hands on: a tuple, or what is alone in it."""
    return parts if parts[1:] else parts[0]


def _joined(parts: list[Any]) -> Any:
    """Returns the batches' tuples of arrays as one, shorter rows padded with -100."""
    whole = parts[0]
    for part in parts[1:]:
        whole = nested_concat(whole, part)
    return whole


def _of_tokens(name: str, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns logits of rows (B, K) as they are, and of tokens those that are not of padding.

    The latter are (B, T, V), or (B, T) where each token has a single one, as for an answer's start.
    """
    if (name == "logits" and logits.ndim < 3) or "attention_mask" not in inputs:
        return logits
    return logits[inputs["attention_mask"].bool()]


def judge(found: dict[str, Any], headline: str, precision: str, accept_loss: bool) -> None:
    """Checks what ``compare`` found.

    Raises:
        UserError: logits in full precision differ, or the export is clearly worse by more than one
            point and ``accept_loss`` is not given.
    """
    apart, most = found["largest_difference"], found["largest_logit"]
    if precision == "fp32" and not apart <= TOLERANCE * max(1.0, most):
        raise UserError(
            f"the export is another model: its logits differ by up to {apart:.2g} from torch's, "
            f"of at most {most:.2g}; nothing was kept"
        )
    difference, sign = found["difference"], 1
    point = POINT
    if not metrics.spec(headline).greater_is_better:
        point, sign = POINT * abs(found["torch_metrics"][headline]["value"]), -1
    best = max(sign * difference["low"], sign * difference["high"])
    if best < -point and not accept_loss:
        raise UserError(
            f"{precision} costs more than one point of {wording.title(headline)}, "
            f"{wording.signed(headline, difference)}; nothing was kept; take another --precision, "
            "or add --accept_loss"
        )
