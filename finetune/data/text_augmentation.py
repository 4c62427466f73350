"""Random changes to training texts: words left out (Wei and Zou 2019), words replaced by synonyms.

Every row draws its own numbers from ``row_random``: the result follows from the seed, the epoch and
the row alone, whatever batch, order or process the row is in.
"""

import functools
import re
from typing import Any

import torch

from finetune.data import row_random
from finetune.errors import UserError
from finetune.recipe import Augmentation, Recipe

# The keys of ``Augmentation`` that change texts.
KEYS = ("word_dropout", "synonyms")
# Draws of each word: whether it stays, whether it becomes a synonym, and which one.
DRAWS = 3
# A word with what stands around it.
WORD = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


def active(config: Augmentation) -> bool:
    """Returns whether ``augment`` changes anything."""
    return bool(config.word_dropout or config.synonyms)


def check(recipe: Recipe) -> None:
    """Checks that WordNet is there, if the recipe asks for synonyms.

    Raises:
        UserError: nltk or its data is not installed.
    """
    if not recipe.augmentation.synonyms:
        return
    where = recipe.where("augmentation.synonyms")
    try:
        synonyms("good")
    except ImportError:
        raise UserError(f"{where}: synonyms needs `pip install nltk`") from None
    except LookupError:
        raise UserError(
            f"{where}: synonyms needs WordNet: `python -m nltk.downloader wordnet`"
        ) from None


def augment(text: str, row: int, epoch: int, seed: int, config: Augmentation, part: int = 0) -> str:
    """Returns a text as a row has it in an epoch; at least one word stays.

    Args:
        part: 0 for a row's first text, 1 for its second.
    """
    words = text.split()
    if not words or not active(config):
        return text
    keys = row_random.keys(torch.tensor([row]), True, epoch, seed)
    # Row by row, because a draw belongs to a word, however many a text has.
    numbers = torch.arange(DRAWS * len(words)) + part * row_random.NOISE_FROM // 2
    drawn = row_random.uniform(keys, numbers)[0].view(-1, DRAWS)
    stays = drawn[:, 0] >= config.word_dropout
    stays[drawn[:, 0].argmax()] = True
    changed = []
    for word, (_, change, which) in zip(words, drawn.tolist(), strict=True):
        changed.append(_synonym(word, which) if change < config.synonyms else word)
    return " ".join(word for word, kept in zip(changed, stays.tolist(), strict=True) if kept)


def _synonym(word: str, draw: float) -> str:
    """Returns a synonym of a word, with its capital and punctuation; the word if it has none."""
    found = WORD.match(word)
    assert found is not None
    before, core, after = found.groups()
    known = synonyms(core.lower())
    if not known:
        return word
    chosen = known[int(draw * len(known))]
    return before + (chosen.capitalize() if core[:1].isupper() else chosen) + after


@functools.lru_cache(maxsize=65536)
def synonyms(word: str) -> tuple[str, ...]:
    """Returns the other single words that share a meaning with a word in WordNet, sorted.

    Raises:
        LookupError: nltk's data has no WordNet.
        ImportError: nltk is not installed.
    """
    from nltk.corpus import wordnet

    corpus: Any = wordnet
    names = {name for meaning in corpus.synsets(word) for name in meaning.lemma_names()}
    return tuple(sorted(n for n in names if n.isalpha() and n.lower() != word))
