"""Reads the subset of YAML that all YAML readers interpret in the same way.

- Rejects anchors, aliases, tags, duplicate keys, several documents, and a bare yes/no/on/off.
- Keeps scalars as text, because the declared type of a key decides how it is read.
- Keeps the file and line of every value, for error messages.
"""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from finetune.errors import UserError

# How many mappings and lists may lie in each other. A recipe needs four; Python's own limit is
# reached at some hundred.
DEPTH = 50
BARE = {"yes", "no", "on", "off", "y", "n"}


class Block(dict[str, Any]):
    """A mapping; ``where`` is the place of its key."""

    where = ""


class Items(list[Any]):
    """A list; ``where`` is the place of its key."""

    where = ""


@dataclass
class Scalar:
    """A scalar: ``text`` is None for null; ``plain`` means that it was not quoted."""

    text: str | None
    plain: bool
    where: str

    def guess(self) -> Any:
        """Returns the value if no type is declared: a JSON number, boolean or null, or text."""
        if self.text is None or not self.plain:
            return self.text
        try:
            return json.loads(self.text)
        except ValueError:
            return self.text


class Dumper(yaml.SafeDumper):
    """Writes YAML that ``parse_yaml`` reads back unchanged: quotes where needed, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: Dumper, text: str) -> yaml.ScalarNode:
    plain = text.lower() not in BARE and Scalar(text, True, "").guess() == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else "'")


Dumper.add_representer(str, _quoted)


def _tree(node: yaml.Node, name: str, line: int) -> Any:
    where = f"{name}:{line}"
    if isinstance(node, yaml.ScalarNode):
        plain = node.style is None
        if plain and node.value.lower() in BARE:
            raise UserError(
                f"{where}: a bare {node.value} is a boolean to some YAML readers and text to "
                f'others; write true or false, or "{node.value}"'
            )
        null = plain and node.value.lower() in {"", "~", "null"}
        return Scalar(None if null else node.value, plain, where)
    if isinstance(node, yaml.SequenceNode):
        items = Items(_tree(item, name, item.start_mark.line + 1) for item in node.value)
        items.where = where
        return items
    out = Block()
    out.where = where
    for k, v in node.value:
        line = k.start_mark.line + 1
        if not isinstance(k, yaml.ScalarNode):
            raise UserError(f"{name}:{line}: a key has to be one word")
        if k.value in out:
            raise UserError(f"{name}:{line}: key {k.value!r} is given twice; keep one")
        out[k.value] = _tree(v, name, line)
    return out


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Reads YAML into nested ``Block``, ``Items`` and ``Scalar``.

    Raises:
        UserError: not YAML, nested too deep, an empty file, another root than a mapping, a second
            document, an anchor, alias or tag, a duplicate key, a bare yes/no/on/off.
    """
    try:
        documents = depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise UserError(f"{name}:{line}: more than {DEPTH} mappings or lists in each other")
            if documents > 1:
                raise UserError(f"{name}:{line}: a second document starts; keep one")
            marked = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)
            if marked or (isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None)):
                raise UserError(
                    f"{name}:{line}: anchors, aliases and tags are not supported; spell it out"
                )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = "; indent with spaces" if "\\t" in str(error.problem) else ""
        raise UserError(f"{name}:{line}: not YAML: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise UserError(f"{name}:1: is empty; a recipe needs task, model and data")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{name}:{root.start_mark.line + 1}: has to be a mapping of keys at its root, "
            "not a list or a word"
        )
    return _tree(root, name, root.start_mark.line + 1)


def plain(tree: Any, guess: bool) -> Any:
    """Converts the result of ``parse_yaml`` to Python's own types.

    Args:
        guess: whether to guess the type of a scalar, or keep its text. Always guessed below a
            mapping, where no types are declared.
    """
    if isinstance(tree, Scalar):
        return tree.guess() if guess else tree.text
    if isinstance(tree, list):
        return [plain(item, guess) for item in tree]
    if isinstance(tree, dict):
        return {k: plain(v, True) for k, v in tree.items()}
    return tree


def place(tree: Any, fallback: str) -> str:
    """Returns the file and line of a value."""
    return tree.where if isinstance(tree, Scalar | Block | Items) else fallback
