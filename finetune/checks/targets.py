"""Targets of encoder-decoders: their lengths, and those that occur again and again."""

from collections import Counter

import numpy
import pandas

from finetune.checks.finding import Finding, Severity, example, some
from finetune.data import sources
from finetune.recipe import Recipe

# One target for more than this share of the sources, and so many of them, is said.
FREQUENT, FEWEST = 0.05, 10
# Above this share, cut targets are a warning.
MUCH_CUT = 0.02


def rows_of(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each target, as a text."""
    pairs = [
        (i, text) for i, texts in zip(rows["id"], rows["label"], strict=True) for text in texts
    ]
    return pandas.DataFrame(pairs, columns=["id", "text"])


def describe(frame: pandas.DataFrame) -> str:
    """Describes the targets of the training rows."""
    written = rows_of(frame)["text"]
    words = written.str.split().str.len()
    several = sum(len(texts) > 1 for texts in frame["label"])
    out = f"{words.median():.0f} words in a typical one, the longest {words.max():,}"
    return out + (f"; {several:,} sources have several" if several else "")


def frequent(frame: pandas.DataFrame) -> list[Finding]:
    """Finds a target that many training sources have."""
    written = rows_of(frame)
    target, count = Counter(written["text"]).most_common(1)[0]
    if count < max(FEWEST, FREQUENT * len(frame)):
        return []
    what = f"training sources ({100 * count / len(frame):.0f} %) have the same target"
    advice = "If it stands for a missing one, remove those rows: the model learns to write it."
    at = [i for i, label in enumerate(frame["label"]) if target in label]
    examples = some(example(frame, i, target) for i in at)
    return [Finding(Severity.NOTE, what, count, advice, examples)]


def lengths(frame: pandas.DataFrame, recipe: Recipe) -> numpy.ndarray:
    """Returns how many tokens the longest target of each row has, (N,).

    Raises:
        UserError: the checkpoint has no tokenizer, or none that knows the recipe's languages.
    """
    # It imports torch.
    from finetune.models import encoder_decoder, tokenizer_files

    checkpoint = sources.checkpoint(recipe.model.checkpoint, recipe.model.revision)
    tokenizer = tokenizer_files.load(*checkpoint.processor)
    encoder_decoder.set_languages(tokenizer, recipe)
    written = rows_of(frame.assign(id=range(len(frame))))
    ids = tokenizer(text_target=written["text"].tolist())["input_ids"]
    counts = pandas.Series(map(len, ids), index=written.index, dtype=int)
    return numpy.asarray(counts.groupby(written["id"]).max())


def cut(frame: pandas.DataFrame, lengths: numpy.ndarray, recipe: Recipe) -> list[Finding]:
    """Finds training targets that are longer than ``max_target_length``."""
    most = recipe.model.max_target_length
    long = numpy.flatnonzero(lengths > most)
    if not len(long):
        return []
    share = len(long) / len(frame)
    severity = Severity.WARNING if share > MUCH_CUT else Severity.NOTE
    what = f"training targets ({100 * share:.1f} %) are longer than max_target_length {most} and "
    what += "cut"
    advice = f"--max_target_length {int(numpy.percentile(lengths, 99))} would keep 99 % whole: "
    advice += "the model also writes no more tokens than that."
    order = long[numpy.argsort(-lengths[long], kind="stable")]
    examples = some(example(frame, i, f"{lengths[i]:,} tokens") for i in order.tolist())
    return [Finding(severity, what, len(long), advice, examples)]
