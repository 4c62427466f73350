"""Documents for language models: what is cut, and which tokens are learned."""

import numpy
import pandas

from finetune.checks.finding import Finding, Severity, example, some
from finetune.data.documents import Document
from finetune.recipe import Recipe

# Above this share of the documents, truncation is a warning.
MUCH_CUT = 0.2
# Characters of a document that are shown with what is learned of it.
SHOWN = 1200

# A text in parts, and whether each part is learned.
Pieces = list[tuple[str, bool]]


def cut(
    frame: pandas.DataFrame, encoded: list[Document], recipe: Recipe, pieces: bool
) -> list[Finding]:
    """Finds training documents that are longer than ``max_length``.

    Args:
        pieces: whether a longer document continues in another block.
    """
    most = recipe.model.max_length
    lengths = numpy.array([len(row.ids) for row in encoded])
    longer = lengths > most
    if not longer.any():
        return []
    severity = Severity.WARNING if longer.mean() > MUCH_CUT and not pieces else Severity.NOTE
    happens = "continue in another block" if pieces else "are truncated"
    what = f"training documents ({100 * longer.mean():.1f} %) are longer than max_length {most} "
    what += f"and {happens}"
    enough = int(numpy.percentile(lengths, 95))
    advice = f"--max_length {enough} would keep 95 % whole, if model and memory have room."
    order = numpy.argsort(-lengths, kind="stable")
    examples = some(example(frame.iloc[i], f"{lengths[i]:,} tokens") for i in order)
    return [Finding(severity, what, int(longer.sum()), advice, examples)]


def unlearned(
    frame: pandas.DataFrame, encoded: list[Document], recipe: Recipe, pieces: bool
) -> list[Finding]:
    """Finds training documents of which nothing is learned: what there is to learn is cut."""
    most = recipe.model.max_length
    seen = [row.learned if pieces else row.learned[:most] for row in encoded]
    none = [i for i, learned in enumerate(seen) if not any(learned[1:])]
    if not none:
        return []
    what = "training documents have nothing to learn within max_length"
    advice = "Raise --max_length, or shorten what stands before the answer."
    examples = some(example(frame.iloc[i], f"{len(encoded[i].ids):,} tokens") for i in none)
    return [Finding(Severity.WARNING, what, len(none), advice, examples)]


def learned_share(encoded: list[Document], most: int) -> float:
    """Returns the share of the tokens, up to ``most`` a document, that have a loss."""
    total = sum(min(len(row.ids), most) for row in encoded)
    return sum(sum(row.learned[:most]) for row in encoded) / max(total, 1)


def shown(row: Document, most: int) -> Pieces:
    """Returns the first ``most`` tokens of a document as texts that are learned, or not."""
    out: Pieces = []
    start = 0
    for end, learned in zip(row.ends[:most], row.learned[:most], strict=True):
        part, start = row.text[start:end], max(start, end)
        if out and out[-1][1] == learned:
            out[-1] = (out[-1][0] + part, learned)
        elif part:
            out.append((part, learned))
    return out
