"""`conf/data`: each published mix composes into a recipe, and a mixture can be written on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from neva.config.compose import CONF_DIR
from neva.config.data_sources import data_sources
from neva.config.load import load

PRESETS = sorted(path.stem for path in Path(CONF_DIR, "data").glob("*.yaml") if path.stem != "llava")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_into_a_recipe(preset: str) -> None:
    recipe = "llava_7b_pretrain" if "pretrain" in preset else "llava_7b_finetune"
    data = load(recipe, [f"data={preset}"]).model.data
    sources = data_sources(data)
    assert all(source.path.startswith("datasets/") for source in sources)
    assert (sources[0].image_folder is None) == (preset in ("llava_onevision", "cauldron"))


def test_a_mixture_is_written_in_yaml_or_on_the_command_line() -> None:
    text = "model.data.data_path=[a.json,{path:b/{0..3}.tar,weight:0.5,image_folder:null,name:b}]"
    sources = data_sources(
        load("llava_7b_finetune", [text.replace("b/{0..3}.tar", "'b/{0..3}.tar'")]).model.data
    )
    assert [(source.name, source.path, source.weight) for source in sources] == [
        ("a.json", "a.json", 1.0),
        ("b", "b/{0..3}.tar", 0.5),
    ]
    assert [source.image_folder for source in sources] == ["datasets/combined_images", None]
    table = "+model.data.data_path={x:x.json,y:{path:y.jsonl,weight:2}}".lstrip("+")
    assert [source.weight for source in data_sources(load("llava_7b_finetune", [table]).model.data)] == [
        1.0,
        2.0,
    ]
