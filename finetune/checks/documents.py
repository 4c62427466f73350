"""Documents for language models: what is cut, and which tokens are learned."""

import pandas

from finetune.checks.finding import Finding, Severity, example, some
from finetune.data.documents import Document
from finetune.recipe import Recipe

# A text in parts, and whether each part is learned.
Pieces = list[tuple[str, bool]]


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
    examples = some(example(frame, i, f"{len(encoded[i].ids):,} tokens") for i in none)
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
