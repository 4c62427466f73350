"""Recipes are found by path or by the name that they are installed under."""

from pathlib import Path

import pytest

from finetune import cli, recipe
from finetune.errors import UserError
from finetune.recipe import packaged

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def test_the_packaged_recipes_are_those_of_the_checkout() -> None:
    assert packaged.folder() == RECIPES.resolve()


@pytest.mark.parametrize(
    "name", ["imdb/minilm", "imdb/minilm.yaml", "recipes/imdb/minilm.yaml", "recipes/imdb/minilm"]
)
def test_a_packaged_recipe_is_found_from_any_folder(workdir: Path, name: str) -> None:
    assert packaged.find(name) == RECIPES / "imdb" / "minilm.yaml"
    assert recipe.load(name).name == "imdb/minilm"


def test_an_existing_file_wins(workdir: Path) -> None:
    own = workdir / "imdb" / "minilm.yaml"
    own.parent.mkdir()
    own.write_text("task: fill-mask\n", encoding="utf-8")
    assert packaged.find("imdb/minilm.yaml") == Path("imdb/minilm.yaml")
    assert packaged.find(own) == own
    # Without the ending it is no path of a file.
    assert packaged.find("imdb/minilm") == RECIPES / "imdb" / "minilm.yaml"


@pytest.mark.parametrize("name", ["imdb", "imdb/minlm", "imdb/README.md", "/no/such.yaml", ""])
def test_what_is_no_recipe_is_an_error(workdir: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        packaged.find(name)
    assert (
        str(caught.value) == f"{Path(name)}: no such recipe; `finetune recipes` lists what there is"
    )


def test_recipes_are_listed_from_any_folder(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["recipes"])
    listed = capsys.readouterr().out
    assert "imdb/minilm.yaml " in listed
    assert listed.endswith("To run one: finetune train RECIPE\n")
    own = workdir / "recipes" / "mine.yaml"
    own.parent.mkdir()
    own.write_text((RECIPES / "imdb" / "minilm.yaml").read_text("utf-8"), encoding="utf-8")
    cli.main(["recipes"])
    listed = capsys.readouterr().out
    assert "mine.yaml " in listed
    assert "imdb/" not in listed
    assert listed.endswith("To run one: finetune train recipes/RECIPE\n")
