"""YAML without what its readers disagree about, every value with the place it was written at."""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from finetune.errors import UserError

BARE = {"yes", "no", "on", "off", "y", "n"}


class Block(dict[str, Any]):
    """A mapping as written; ``where`` is its key's place."""

    where = ""


class Items(list[Any]):
    """A list as written; ``where`` is its key's place."""

    where = ""


@dataclass
class Scalar:
    """A scalar as written: ``text`` is None for null; ``plain`` means it was not quoted."""

    text: str | None
    plain: bool
    where: str

    def guess(self) -> Any:
        """The value where no type is declared: JSON's numbers, booleans and null, else text."""
        if self.text is None or not self.plain:
            return self.text
        try:
            return json.loads(self.text)
        except ValueError:
            return self.text


class Dumper(yaml.SafeDumper):
    """YAML that ``parse_yaml`` reads back as it was: no aliases, and quotes where it needs them."""

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
                f"{where}: a bare {node.value} is true or false to some YAML readers and text to "
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
    """Read YAML into nested ``Block`` of ``Scalar``, refusing all that readers disagree about.

    Raises:
        UserError: not YAML, an empty file, another root than a mapping, a second document, an
            anchor, alias or tag, a duplicate key, a bare yes/no/on/off.
    """
    try:
        documents = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise UserError(f"{name}:{line}: a second document starts; a recipe is one")
            marked = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)
            if marked or (isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None)):
                raise UserError(
                    f"{name}:{line}: anchors, aliases and tags are not read; spell it out"
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
    """What ``parse_yaml`` gave, as Python's own values; below a mapping all are guessed.

    Args:
        guess: whether a scalar's type is guessed, or its text left as it is.
    """
    if isinstance(tree, Scalar):
        return tree.guess() if guess else tree.text
    if isinstance(tree, list):
        return [plain(item, guess) for item in tree]
    if isinstance(tree, dict):
        return {k: plain(v, True) for k, v in tree.items()}
    return tree


def place(tree: Any, fallback: str) -> str:
    """The file and line that something was written at."""
    return tree.where if isinstance(tree, Scalar | Block | Items) else fallback
