"""The house's rules that imports and names can show."""

import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"
FILES = sorted(PACKAGE.rglob("*.py"))

# Who stands on whom: a module may import from lower floors, and from its own package.
FLOORS = [
    {"finetune", "finetune.errors"},
    {
        "finetune.strict_yaml",
        "finetune.launching",
        "finetune.conversations",
        "finetune.checkpoints",
        "finetune.preemption",
    },
    {"finetune.recipe", "finetune.saver"},
    {"finetune.ledger", "finetune.sources"},
    {"finetune.files", "finetune.encoding"},
    {"finetune.pictures", "finetune.labels"},
    {
        "finetune.corpus",
        "finetune.scoring",
        "finetune.losses",
        "finetune.augmentation",
        "finetune.sampling",
        "finetune.packing",
        "finetune.bottleneck_adapters",
        "finetune.convnets",
        "finetune.positions",
        "finetune.padding_free",
        "finetune.cpu",
    },
    {
        "finetune.baselines",
        "finetune.tuning",
        "finetune.report",
        "finetune.features",
        "finetune.streaming",
    },
    {"finetune.job", "finetune.bases", "finetune.adalora", "finetune.averaging"},
    {"finetune.outcome", "finetune.callbacks", "finetune.resumable"},
    {"finetune.trainer"},
    {"finetune.runner"},
    {"finetune.tasks"},
    {"finetune.inference"},
    {"finetune.cli"},
    {"finetune.sentiment", "finetune.digits", "finetune.writing", "finetune.__main__"},
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The entry of FLOORS a module belongs to: a package's files share a room."""
    rooms = [r for floor in FLOORS for r in floor if r != "finetune"]
    found = [r for r in rooms if name == r or name.startswith(f"{r}.")]
    return found[0] if found else name


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


def height(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room(name) in floor)


def test_every_module_is_read_and_has_a_floor() -> None:
    assert len(FILES) >= 20
    listed = {r for floor in FLOORS for r in floor}
    assert {room(module_name(f)) for f in FILES} == listed


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_arrows_point_down(path: Path) -> None:
    name = module_name(path)
    for target in imported(path):
        if room(target) != room(name):
            assert height(target) < height(name), f"{name} imports {target}, which stands above it"


def sources_with(text: str) -> list[str]:
    return [module_name(f) for f in FILES if text in f.read_text(encoding="utf-8")]


def test_there_is_one_trainer() -> None:
    assert sources_with("(Trainer)") == ["finetune.resumable"]


def test_peft_is_imported_in_three_places() -> None:
    importers = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "peft" for name in names):
                importers.append(module_name(path))
    assert set(importers) == {"finetune.tuning", "finetune.bottleneck_adapters", "finetune.cpu"}


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
    for name in ("sentiment", "digits", "writing"):
        lines = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) < 30
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
