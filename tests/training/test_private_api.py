"""The installed libraries still have the private parts that ``private_api.py`` lists."""

import ast
import hashlib
import importlib
import inspect
import pkgutil
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.training.private_api import DEPENDENCIES, Dependency

PACKAGE = Path(finetune.__file__).parent
LIBRARIES = ("transformers", "peft", "accelerate", "datasets", "torch")
# Submodules whose names the libraries document.
DOCUMENTED = {"accelerate.utils", "datasets.exceptions", "transformers.modeling_outputs"}
DOCUMENTED |= {"transformers.trainer_utils", "torch.utils.data", "torch.optim.swa_utils"}


def resolve(name: str) -> Any:
    """Returns the object of a dotted name; None for an attribute that only instances have.

    Raises:
        LookupError: there is none.
    """
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for i, part in enumerate(parts[count:], count):
            if part in dir(owner):
                owner = inspect.getattr_static(owner, part, None) or getattr(owner, part)
            elif i == len(parts) - 1 and re.search(rf"\.{part}\b", source(owner)):
                return None
            else:
                raise LookupError(name)
        return owner
    raise LookupError(name)


def source(owner: Any) -> str:
    """Returns the source of a class with its bases, or of a module."""
    owners = owner.__mro__[:-1] if isinstance(owner, type) else [owner]
    return "".join(inspect.getsource(each) for each in owners)


def plain(node: Any) -> Any:
    """Returns a syntax tree as nested tuples, the same on every version of Python."""
    if isinstance(node, ast.AST):
        fields = [(f, plain(v)) for f, v in ast.iter_fields(node) if v is not None and v != []]
        return (type(node).__name__, *fields)
    return tuple(map(plain, node)) if isinstance(node, list) else node


def digest(function: Any) -> str:
    """Returns a hash of a definition: decorators, parameters and body, but no docstring."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    function = function.fget if isinstance(function, property) else function
    lines = inspect.getsource(function)
    # A method's source is indented, which needs a block around it.
    tree = ast.parse(f"if True:\n{lines}" if lines[0] == " " else lines)
    definition = tree.body[0]
    if isinstance(definition, ast.If):
        definition = definition.body[0]
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    return hashlib.sha256(repr(plain(definition)).encode()).hexdigest()[:16]


def signature(function: Any) -> str:
    """Returns a function's parameters without annotations, for a message."""
    function = getattr(function, "__func__", function)
    found = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def change(dependency: Dependency) -> str | None:
    """Returns what the installed version changed; None if nothing."""
    try:
        found = resolve(dependency.name)
    except LookupError:
        return "is gone"
    if not dependency.hashes or digest(found) in dependency.hashes:
        return None
    known = ", ".join(dependency.hashes.values())
    return f"{signature(found)} has the hash {digest(found)!r}, which is not that of {known}"


def test_the_installed_versions_have_not_changed_what_is_relied_on() -> None:
    changes = [
        f"{d.name} {found}\n    {d.kind} by {d.used_by}: {d.reason}"
        for d in DEPENDENCIES
        if (found := change(d))
    ]
    installed = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    assert not changes, f"{installed}:\n" + "\n".join(changes)


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=lambda d: f"{d.kind}-{d.name}")
def test_every_entry_is_used_where_it_says(dependency: Dependency) -> None:
    path = PACKAGE.parent / (dependency.used_by.replace(".", "/") + ".py")
    if dependency.kind in {"override", "use"}:
        name = dependency.name.rpartition(".")[2]
        assert re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    else:
        assert path.is_file()


LISTED = {d.name.rpartition(".")[2] for d in DEPENDENCIES}


def test_every_override_of_a_private_method_is_listed() -> None:
    found = set()
    for module in pkgutil.walk_packages([str(PACKAGE)], "finetune."):
        if module.name == "finetune.__main__":
            continue
        for owner in vars(importlib.import_module(module.name)).values():
            if not isinstance(owner, type) or owner.__module__ != module.name:
                continue
            bases = [b for b in owner.__mro__ if b.__module__.split(".")[0] in LIBRARIES]
            for name, value in vars(owner).items():
                private = re.fullmatch(r"_[a-z]\w*", name) and inspect.isfunction(value)
                if private and any(name in vars(base) for base in bases):
                    found.add((module.name, name))
    listed = {(d.used_by, d.name.rpartition(".")[2]) for d in DEPENDENCIES if d.kind == "override"}
    assert len(found) > 10
    assert found == listed


def test_every_private_name_of_a_library_is_listed() -> None:
    own, used = set(), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                if on_self and isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                used.setdefault(node.attr, path)
    private = {n: path for n, path in used.items() if re.fullmatch(r"_[a-z]\w*", n)}
    # os._exit is documented.
    missing = {n: path for n, path in private.items() if n not in own | LISTED | {"_exit"}}
    assert not missing


def test_every_import_of_an_undocumented_name_is_listed() -> None:
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module in DOCUMENTED:
                continue
            library, _, submodule = (node.module or "").partition(".")
            if library not in LIBRARIES[:4] or not submodule:
                continue
            exported = dir(importlib.import_module(library))
            names = {alias.name for alias in node.names} - set(exported) - LISTED
            missing += [f"{path.relative_to(PACKAGE)}: {node.module}.{name}" for name in names]
    assert not missing
