"""peft #1959: a target that matched nothing was accepted beside one that did; #2118: missing keys were a late warning."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.core.files import read_tensors, write_tensors
from luthier.recipes.export import LoadedRun
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import plain


def test_a_site_without_a_match_is_an_error_that_names_it_and_the_nearest(place, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place, adapt={"lora": {"sites": "q_proj,v_prj"}}))
    refused(luthier("run", recipe, "--out", tmp_path / "run"), "v_prj", "v_proj")


@pytest.mark.parametrize("change", ["missing", "renamed", "of another shape"])
def test_an_adapter_file_that_does_not_fit_is_an_error_that_names_the_tensor(place, tmp_path, change):
    run(parse(plain(place, adapt={"lora": {"rank": 2}})), tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adaptation.safetensors"
    tensors = read_tensors(path)
    name = sorted(tensors)[0]
    value = tensors.pop(name)
    if change != "missing":
        tensors |= {f"{name}x": value} if change == "renamed" else {name: value[:1]}
    write_tensors(path, tensors)
    with pytest.raises(LuthierError) as told:
        LoadedRun(tmp_path / "run")
    assert name.rsplit(".", 1)[0] in str(told.value)
