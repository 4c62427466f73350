"""What a wheel holds. `make wheel` installs one, and an sdist, and runs them."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from finetune import DISTRIBUTION

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built from a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("finetune", "recipes", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    (tree / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tree / "dist"


def package_files() -> set[str]:
    """Every module, recipe and template that a wheel has to hold, by its path inside of it."""
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "finetune").rglob("*.py")}
    recipes = {f"finetune/{p.relative_to(ROOT)}" for p in (ROOT / "recipes").glob("*/*.yaml")}
    pages = {f"finetune/{p.relative_to(ROOT)}" for p in (ROOT / "recipes").glob("*/README.md")}
    assert len(recipes) >= 30
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "finetune").rglob("*.j2")}
    templates |= {str(p.relative_to(ROOT)) for p in (ROOT / "finetune").rglob("*.html")}
    assert len(pages) >= 6
    assert len(templates) >= 3
    return modules | recipes | pages | templates


def test_a_wheel_holds_the_package_and_its_recipes_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        about = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(about))
        recipe = archive.read("finetune/recipes/imdb/minilm.yaml")
    assert names == package_files()
    assert recipe == (ROOT / "recipes" / "imdb" / "minilm.yaml").read_bytes()
    assert metadata["Name"] == DISTRIBUTION


def test_an_sdist_holds_all_that_a_wheel_is_built_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    assert package_files() | {"pyproject.toml", "README.md"} <= set(members)
    assert all(members[name].isfile() for name in package_files())
    assert not [name for name in members if name.startswith("tests/")]
