"""Documents for language models: what is cut, and which tokens are learned."""

import pandas

from finetune.checks.finding import Finding, Severity, example, some
from finetune.data.documents import Document, Encoded
from finetune.recipe import Recipe


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


def refused(frame: pandas.DataFrame, rows: list[Encoded]) -> list[Finding]:
    """Finds training chats that training leaves out, because the chat template rejects them."""
    left_out = [i for i, row in enumerate(rows) if row.fault]
    if not left_out:
        return []
    examples = some(example(frame, i, str(rows[i].fault)) for i in left_out)
    advice = "Training leaves them out; rewrite them, or take a checkpoint with another template."
    what = "chats cannot be written by the chat template"
    return [Finding(Severity.WARNING, what, len(left_out), advice, examples)]


def shown(row: Document, most: int) -> list[tuple[str, bool]]:
    """Returns the first ``most`` tokens of a document as texts that are learned, or not."""
    first = Document(row.text, row.ids[:most], row.learned[:most], row.ends[:most])
    return first.pieces()
