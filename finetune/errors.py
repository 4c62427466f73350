"""The exceptions whose message is for the user, and suggestions for misspelt names."""

from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """A mistake that only the user can correct.

    The message is one line: what is wrong, where, and what to write instead. Commands print it
    without a traceback and exit with status 2.
    """


class TrainingError(Exception):
    """A run that was set up correctly and broke: non-finite numbers, a full disk, no memory.

    The message is one line. Commands print it without a traceback and exit with status 1.
    """


def nearest(word: str, known: list[str]) -> str:
    """Returns how a message ends: the closest name in ``known``, or all if they are few."""
    close = get_close_matches(word, known, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]!r}?"
    return "it can be " + ", ".join(sorted(known)) if len(known) <= 16 else ""


def refuse_unknown(word: str, known: list[str], what: str) -> NoReturn:
    """Raises the ``UserError`` for a name that does not exist, with the nearest that does."""
    raise UserError(f"{what} {word!r} is unknown; {nearest(word, known)}".rstrip("; "))
