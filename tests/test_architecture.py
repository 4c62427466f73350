"""The house's rules that imports and names can show."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"
FILES = sorted(PACKAGE.rglob("*.py"))

# What one launches for a task: a docstring with the command, and the default recipe.
RECIPE_MODULES = ("sentiment", "digits", "writing", "entities", "answers", "translation", "search")

# Which floors each floor may import. A floor is a package, or a module at the top of finetune/.
EVERYTHING = {
    *("errors", "recipe", "run_directory", "data", "models", "evaluation", "training", "tasks"),
    *("inference", "distillation", "forecast", "checks", "report", "serving", "export", "studies"),
    "clusters",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "recipe": {"errors"},
    "run_directory": {"errors", "recipe"},
    "data": {"errors", "recipe"},
    "models": {"errors", "recipe", "data"},
    "evaluation": {"errors", "recipe", "data"},
    "training": {"errors", "recipe", "run_directory", "data", "models", "evaluation"},
    "tasks": {"errors", "recipe", "run_directory", "data", "models", "evaluation", "training"},
    "inference": {
        *("errors", "recipe", "run_directory", "data", "models", "evaluation", "tasks", "export"),
    },
    "export": {
        *("errors", "recipe", "run_directory", "data", "models", "evaluation", "training", "tasks"),
        "report",
    },
    "distillation": {
        *("errors", "recipe", "run_directory", "data", "models", "training", "tasks", "inference"),
    },
    "forecast": {
        *("errors", "recipe", "run_directory", "data", "models", "evaluation", "training"),
        *("distillation", "report"),
    },
    "report": {"errors", "recipe", "run_directory", "data", "evaluation", "tasks"},
    "studies": {"errors", "recipe", "run_directory", "evaluation", "report", "training"},
    "checks": {"errors", "recipe", "data", "models", "evaluation", "tasks", "report"},
    "serving": {
        *("errors", "recipe", "run_directory", "data", "models", "tasks", "inference"),
        "export",
    },
    "clusters": {"errors"},
    "commands": EVERYTHING,
    "cli": {"commands", "errors", "recipe", "training"},
    **{module: {"cli"} for module in (*RECIPE_MODULES, "__main__")},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> str:
    """The package below finetune/ that a module belongs to, or its own name at the top."""
    return module.split(".")[1] if "." in module else module


def imported(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports itself relatively"
            assert node.module is not None
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= {n if importable(n) else node.module for n in names}
    return {name for name in found if name.split(".")[0] == "finetune"}


def importable(name: str) -> bool:
    return name.startswith("finetune.") and any(module_name(f) == name for f in FILES)


def test_every_module_is_read_and_has_a_floor() -> None:
    assert len(FILES) >= 50
    assert {floor(module_name(f)) for f in FILES} == {*ALLOWED, "finetune"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_between_floors_are_allowed(path: Path) -> None:
    own = floor(module_name(path))
    for target in imported(path):
        if floor(target) not in {own, "finetune"}:
            assert floor(target) in ALLOWED[own], f"{module_name(path)} may not import {target}"


def test_floors_do_not_import_in_a_circle() -> None:
    sorter = graphlib.TopologicalSorter(ALLOWED)
    assert len(list(sorter.static_order())) == len(ALLOWED)


def test_modules_of_a_floor_do_not_import_in_a_circle() -> None:
    graph = {module_name(f): imported(f) for f in FILES if f.stem != "__init__"}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)


def test_no_task_imports_another() -> None:
    shared = {"base", "classification", "images", "pairs", "text", "usage"}
    shared |= {"augmented_texts", "class_settings", "encoders", "searches"}
    tasks = [f for f in (PACKAGE / "tasks").glob("*.py") if f.stem not in {*shared, "__init__"}]
    assert len(tasks) >= 5
    for path in tasks:
        others = {t.rpartition(".")[2] for t in imported(path) if floor(t) == "tasks"}
        assert others <= shared | {"tasks"}, f"{path.name} imports {others - shared}"


def test_the_top_of_the_package_is_short() -> None:
    assert len([f for f in PACKAGE.glob("*.py") if f.stem not in RECIPE_MODULES]) <= 5


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_long_file_says_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > 350:
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert "one file because" in " ".join(docstring.split())


def sources_with(text: str) -> list[str]:
    return [module_name(f) for f in FILES if text in f.read_text(encoding="utf-8")]


def test_there_is_one_trainer() -> None:
    assert sources_with("(Trainer)") == ["finetune.training.hooks"]


def test_peft_is_imported_in_five_places() -> None:
    importers = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "peft" for name in names):
                importers.append(module_name(path))
    assert set(importers) == {
        "finetune.recipe.adapters",
        "finetune.models.tuning",
        "finetune.models.adapters",
        "finetune.models.bottleneck",
        "finetune.models.speed.merged_lora",
    }


@pytest.mark.parametrize("text", ["trust_remote_code", "import pickle", "torch.load("])
def test_nothing_runs_code_from_a_checkpoint(text: str) -> None:
    assert sources_with(text) == []


def test_no_file_hides_a_package_of_its_name() -> None:
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    taken -= {"finetune", "__main__"}
    stems = {f.stem for f in PACKAGE.glob("*.py")} | {f.parent.name for f in PACKAGE.glob("*/*.py")}
    assert len(stems) > 10
    assert stems & taken == set()


def test_a_recipe_module_is_thin() -> None:
    for name in RECIPE_MODULES:
        lines = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 30
        assert importlib.util.find_spec(f"finetune.{name}") is not None


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["train", "--help"], ["predict", "-h"]])
def test_help_and_recipes_answer_without_what_is_slow_to_import(words: list[str]) -> None:
    code = (
        "import sys, finetune.cli\n"
        "try: finetune.cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 5
