"""A folder that sound recipes work on, and the way to try a recipe that must be refused."""

from __future__ import annotations

import pytest

from tests.cli.shell import files, folder_with_data, luthier, refused, sound, write_recipe


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return folder_with_data(tmp_path_factory.mktemp("place"))


@pytest.fixture
def tried(place, tmp_path):
    """Run a recipe that must be refused: nothing is written, nothing that was there is changed."""

    def attempt(*words, command="run", **changes):
        recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, **changes))
        before = files(place)
        ran = luthier(command, recipe, *(["--out", tmp_path / "out"] if command == "run" else []))
        refused(ran, *words)
        assert not (tmp_path / "out").exists()
        assert files(place) == before
        return ran

    return attempt
