"""The exceptions a user is meant to see."""

from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """A mistake that only the user can mend.

    The message is one line: what is wrong, where, and what to write instead. Commands print it
    without a traceback and exit with status 2.
    """


class TrainingError(Exception):
    """What ended a run that was set up right: numbers that are not finite, a full disk or memory.

    The message is one line. Commands print it without a traceback and exit with status 1.
    """


def nearest(word: str, known: list[str]) -> str:
    """A suggestion to end a message with: the closest of ``known``, or all of them if few."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "it can be " + ", ".join(sorted(known)) if len(known) <= 12 else ""


def refuse_unknown(word: str, known: list[str], what: str) -> NoReturn:
    """Raise the ``UserError`` for a name that does not exist, with the nearest that does."""
    raise UserError(f"{what} {word!r} is unknown; {nearest(word, known)}".rstrip("; "))
