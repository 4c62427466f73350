"""Detects how a text file is written: its encoding and its delimiter."""

import codecs
import csv
import re
from collections.abc import Sequence
from typing import Any

import charset_normalizer

from finetune.errors import UserError

# How cells that hold a delimiter may be written, as arguments of csv.reader.
QUOTING: tuple[dict[str, Any], ...] = (
    {"quoting": csv.QUOTE_MINIMAL},
    {"quoting": csv.QUOTE_MINIMAL, "doublequote": False, "escapechar": "\\"},
    {"quoting": csv.QUOTE_NONE},
)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# What files that are no UTF-8 are written in: Latin letters with accents, and other scripts.
LATIN = ["cp1252", "cp1250", "cp1254"]
OTHERS = ["cp1251", "koi8_r", "cp1253", "cp932", "euc_jp", "gb18030", "big5", "euc_kr"]
# Fewer bytes beyond ASCII show no other encoding than the most frequent one, cp1252; with a larger
# share of a text's letters it is in another script.
FEW_BYTES, OTHER_SCRIPT = 8, 0.4
# Bytes of lines beyond ASCII, and lines, by which the encoding and the delimiter are found.
MOST_BYTES, MOST_LINES = 32_768, 200
# Control characters that no text has: signs of cp1252 that were read as latin-1.
C1 = re.compile("[\x80-\x9f]")
# UTF-8 that was once read as cp1252 and written again: "é" has become "Ã©".
MOJIBAKE = re.compile("Ã[\xa0-\xbf]|â€[™œ\x9d“”¦]")


def known(encoding: str) -> str:
    """Returns Python's name of an encoding.

    Raises:
        UserError: there is no such encoding of text.
    """
    spelled = re.sub(r"^utf[-_]?(8|16|32)[-_]?(le|be|sig)?$", r"utf-\1-\2", encoding.lower())
    try:
        found = codecs.lookup(spelled.rstrip("-")).name
        # Fails for codecs that are no encodings of text, such as hex.
        "".encode(found)
    except LookupError:
        raise UserError(f"encoding {encoding!r} is unknown; for example utf-8 or cp1252") from None
    return found


def decode(data: bytes, encoding: str | None, name: str) -> tuple[str, list[str]]:
    """Returns a file's text without its byte-order mark, and what has to be said about it.

    Args:
        encoding: that of the file, or None to detect it.
        name: the file's, for messages.

    Raises:
        UserError: it is not in ``encoding``, or it mixes encodings.
    """
    mark = next((m for m in MARKS if data.startswith(m)), b"")
    marked = MARKS.get(mark)
    if encoding is not None:
        wanted = known(encoding)
        family = marked is not None and marked.startswith(wanted.removesuffix("-sig"))
        start = len(mark) if family else 0
        found = str(marked) if family and wanted in {"utf-16", "utf-32"} else wanted
    else:
        start = len(mark)
        found = marked or _wide(data) or "utf-8"
        if found == "utf-8" and not marked:
            try:
                # Most files are; detecting would decode them twice.
                return _noted(data.decode(), found, name, True)
            except UnicodeDecodeError:
                found = detect(data)
    try:
        text = (data[start:] if start else data).decode(found)
    except UnicodeDecodeError as error:
        at = f"{name}: not {encoding or found} at byte {start + error.start}"
        if encoding is None and found == "utf-8":
            line = data.count(b"\n", 0, start + error.start) + 1
            raise UserError(
                f"{at} (line {line}), but the rest is; fix it, or insist with `--encoding cp1252`"
            ) from None
        raise UserError(f"{at}; leave `encoding` out to detect it") from None
    return _noted(text, found, name, encoding is None)


def _noted(text: str, found: str, name: str, detected: bool) -> tuple[str, list[str]]:
    """Returns a text, and what has to be said about it."""
    notes = []
    if found not in {"utf-8", "ascii"} and detected:
        sample = re.search(r"\w{0,12}[^\x00-\x7f]+\w{0,12}", text)
        word = f" (for example {sample[0][:24]!r})" if sample else ""
        notes.append(f"{name} read as {found}{word}, `--encoding` insists on another")
    strange = len(C1.findall(text)) if not text.isascii() else 0
    if strange:
        hint = "it is probably cp1252, leave `encoding` out" if not detected else "check its texts"
        notes.append(
            f"warning: {name} has {strange:,} control characters where text is expected; {hint}"
        )
    elif not text.isascii() and (twice := len(MOJIBAKE.findall(text))):
        notes.append(
            f"warning: {name} has {twice:,} places such as {MOJIBAKE.findall(text)[0]!r}: UTF-8 "
            "that was once read as another encoding"
        )
    return text, notes


def detect(data: bytes) -> str:
    """Returns the encoding of bytes without a byte-order mark.

    UTF-8 if they are, or are but for a few places; UTF-16 if every other byte is zero. Otherwise
    what charset_normalizer finds, and in doubt cp1252.
    """
    if wide := _wide(data):
        return wide
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", errors="replace")
    broken = text.count("\N{REPLACEMENT CHARACTER}")
    beyond = len(re.findall(r"[^\x00-\x7f\ufffd]", text))
    if beyond > broken:
        return "utf-8"
    lines, size = [], 0
    for line in re.finditer(rb"[^\n]*[\x80-\xff][^\n]*\n?", data):
        lines.append(line[0])
        size += len(line[0])
        if size > MOST_BYTES:
            break
    choice = _legacy(b"".join(lines))
    try:
        data.decode(choice)
        return choice
    except UnicodeDecodeError:
        return "latin-1"


def _wide(data: bytes) -> str | None:
    """Returns the UTF-16 encoding of bytes of which every other one is zero, else None."""
    head = data[:MOST_BYTES]
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = head[offset::2].count(0)
        if zeros > 0.3 * len(head[offset::2]) and zeros > 4 * head[1 - offset :: 2].count(0):
            return name
    return None


def _legacy(sample: bytes) -> str:
    """Returns the encoding of lines that are no UTF-8, by what charset_normalizer says of them.

    It compares how unlikely sequences of characters are (chaos) and how well their frequencies
    fit a language (coherence), which for short Latin texts are no reason against cp1252.
    """
    beyond = sum(byte >= 0x80 for byte in sample)
    letters = beyond + sum(bytes([byte]).isalpha() for byte in sample)
    if beyond < FEW_BYTES:
        return LATIN[0]
    other = beyond > OTHER_SCRIPT * letters
    found = charset_normalizer.from_bytes(sample, cp_isolation=OTHERS if other else LATIN)
    scores = {name: m for m in found for name in (m.encoding, *m.could_be_from_charset)}
    if other:
        best = min(found, key=lambda m: (m.chaos, -m.coherence), default=None)
        return best.encoding if best else LATIN[0]
    ours = scores.get(LATIN[0])
    # What is not among the matches has more than 0.2.
    chaos, coherence = (ours.chaos, ours.coherence) if ours else (0.2, 0.0)
    for name in LATIN[1:]:
        m = scores.get(name)
        if m and (m.chaos < chaos - 0.1 or (m.chaos <= chaos and m.coherence > coherence + 0.02)):
            return name
    return LATIN[0]


# --- delimiters ------------------------------------------------------------------------------


def delimiter(given: str) -> str:
    """Returns the delimiter that a recipe names: a character, or the name of one.

    Raises:
        UserError: it is not one character, or one that texts consist of.
    """
    named = {name: sign for sign, name in DELIMITERS.items()} | {"\\t": "\t", "space": " "}
    sign = named.get(given.lower(), given)
    if len(sign) != 1 or sign.isalnum() or sign in "\"\r\n\\'.":
        raise UserError(f"delimiter {given!r} is none; for example ';' or tab")
    return sign


def name(sign: str) -> str:
    """Returns how a message calls a delimiter."""
    return DELIMITERS.get(sign, repr(sign))


def sniff(lines: Sequence[str], default: str) -> str:
    """Returns the delimiter by which most lines have as many cells as the first one.

    Args:
        lines: of the file, with their ends; ``MOST_LINES`` of them are read.
        default: is taken if it fits, or if none does.
    """
    sample, shares = list(lines[:MOST_LINES]), {}
    for sign in (default, *(d for d in DELIMITERS if d != default)):
        shares[sign] = max(_regular(sample, sign, **way) for way in QUOTING)
        if sign == default and shares[sign] >= 0.9:
            return default
    best = max(shares, key=lambda sign: shares[sign])
    return best if shares[best] > 0.5 else default


def _regular(lines: list[str], sign: str, **quoting: Any) -> float:
    """Returns the share of rows with as many cells as the first, 0 if that is one cell."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=sign, **quoting) if row]
    except csv.Error:
        return 0.0
    if not rows or len(rows[0]) < 2:
        return 0.0
    # A line that is cut off by the end of the sample does not count against it.
    rows = rows[:-1] if len(rows) > 2 else rows
    least = len([cell for cell in rows[0] if cell.strip()])
    # A sign with a blank after it is rather one of prose.
    prose = 0.6 if all(cell[:1] == " " for cell in rows[0][1:]) and sign != "\t" else 1.0
    return prose * sum(least <= len(row) <= len(rows[0]) + 1 for row in rows) / len(rows)
