"""Tags of words, and the entities that they mark.

- IOB2: B-TYPE begins an entity, I-TYPE continues it, O is outside. What this project keeps.
- IOB1: I-TYPE begins one, too; B-TYPE only where the entity before it has the same type.
- IOBES: E-TYPE ends an entity, S-TYPE is one of a single word. Also written as BILOU and BMES.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

OUTSIDE = "O"
TAG = re.compile(r"O|([BIESLUM])-(.+)")
# The prefixes of BILOU and BMES in IOBES.
PREFIXES = {"L": "E", "U": "S", "M": "I"}
IOB1, IOB2, IOBES = "IOB1", "IOB2", "IOBES"

Entity = tuple[str, int, int]


def parse(tag: str) -> str | None:
    """Returns a tag with the prefixes of IOBES, or None if it is not one of a known scheme."""
    found = TAG.fullmatch(tag)
    if found is None or found[1] is None:
        return tag if found else None
    return f"{PREFIXES.get(found[1], found[1])}-{found[2]}"


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns type, first word and word after the last of each entity, of any scheme.

    By the rule of conlleval and of seqeval's default mode: an entity begins at B and S, and at I
    and E where none of that type is open. It ends at E and S and before anything that does not
    continue it.
    """
    found: list[Entity] = []
    kind, start = "", None
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, this = tag.partition("-")
        if start is not None and (prefix not in "IE" or this != kind):
            found.append((kind, start, place))
            start = None
        if prefix != OUTSIDE and start is None:
            kind, start = this, place
        if prefix in "ES" and start is not None:
            found.append((kind, start, place + 1))
            start = None
    return found


def iob2(found: Iterable[Entity], count: int) -> list[str]:
    """Returns the tags of ``count`` words in which entities were found."""
    tags = [OUTSIDE] * count
    for kind, start, end in found:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tags


def scheme(rows: Iterable[Sequence[str]]) -> str:
    """Returns the scheme of the tags of a file."""
    begins_by_i = False
    found = IOB1
    for tags in rows:
        for before, tag in pairwise([OUTSIDE, *tags]):
            prefix, _, kind = tag.partition("-")
            if prefix in "ES":
                return IOBES
            inside = before != OUTSIDE and before.partition("-")[2] == kind
            if prefix == "B" and not inside:
                found = IOB2
            begins_by_i |= prefix == "I" and not inside
    # Without an entity that begins by I, the two do not differ.
    return found if begins_by_i else IOB2


def is_broken(tags: Sequence[str], scheme: str) -> bool:
    """Returns whether tags continue an entity that did not begin, or leave one of IOBES open."""
    if scheme == IOB1:
        return False
    for before, tag in pairwise([OUTSIDE, *tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        # What the tag before leaves open, or may leave open.
        opened = before.partition("-")[2] if before[0] in "BI" else None
        if prefix in "IE" and kind != opened:
            return True
        if scheme == IOBES and opened is not None and prefix not in "IE":
            return True
    return False
