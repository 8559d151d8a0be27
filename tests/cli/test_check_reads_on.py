"""`check` names the faults of keys and of files together, whichever section they are in."""

from __future__ import annotations

from tests.cli.shell import folder_with_data, luthier, refused, sound, write_recipe


def test_a_misspelt_key_of_data_does_not_hide_that_its_file_is_missing_or_broken(tmp_path):
    place = folder_with_data(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1"\n')
    data = {
        "train": str(tmp_path / "rows.jsonl"),
        "test": str(tmp_path / "none.jsonl"),
        "max_lenght": 7,
        "holdout": "x",
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, data=data, objective="dop"))
    ran = luthier("check", recipe)
    refused(ran, "did you mean 'max_length'?", "data.holdout: input should be a valid number", "unknown component 'dop'",
            "rows.jsonl line 1: broken JSON")  # fmt: skip
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, data={**data, "train": str(place / "chat.jsonl")}))
    refused(luthier("check", recipe), "did you mean 'max_length'?", "none.jsonl' requires an existing file")


def test_where_the_source_itself_is_faulty_nothing_is_read(tmp_path):
    place = folder_with_data(tmp_path)
    for data, told in (
        ({"train": 5}, "data.train"),
        ({"rows": 5}, "requires the key 'train'"),
        (5, "data: requires a mapping"),
    ):
        ran = luthier("check", write_recipe(tmp_path / "recipe.yaml", sound(place, data=data)))
        refused(ran, told)
        assert "faults" not in ran.err
