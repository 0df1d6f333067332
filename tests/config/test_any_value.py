"""Any value of any key, in the tree or typed as an override, gives a launch plan or one sentence a problem."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from neva.config.compose import Composed, compose
from neva.config.keys.inference import Inference
from neva.config.keys.training import Training
from neva.config.load import completed, load
from neva.config.paths import path_problems, run_folder
from neva.config.schema import walk
from neva.config.validate import validate, world_size
from neva.distributed.launch import identify
from neva.errors import ConfigError, UserError

RECIPES = {"quickstart_finetune": Training, "llava_7b_finetune": Training, "llava_7b_inference": Inference}
LONGEST_LINE = 4000
"""A value is shown as it was typed, a list of them too."""

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 64, 1000, 10**6, -1, 2**70])
    | st.sampled_from([0.1, 1.5, -0.5, 1e-3, 1e308, 5e-324, math.nan, math.inf])
    | st.sampled_from(
        ["", "x", "1", "/", "a\0b", "a\nb", "x" * 300, "\ud83d", "~", "linear", "full", "bf16", "v1"]
    )
    | st.sampled_from(["${model.num_layers}", "${nowhere}", "${", "${oc.env:NOPE}", "???", "7:00:00:00"])
    | st.text(max_size=4)
)
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["rope_type", "factor", "a", "name"]), SCALARS, max_size=2)
)


@functools.cache
def recipe(name: str) -> DictConfig:
    cfg = compose(name, [])
    OmegaConf.set_struct(cfg, False)
    return cfg


def plan(cfg: DictConfig) -> None:
    """What a start decides before anything heavy: the tree, the processes, the place in the run, files, the folder."""
    whole = completed(Composed(cfg, None))
    validate(whole, world_size(whole.trainer))
    trainer = whole.trainer
    place = identify(
        trainer.devices, trainer.num_nodes, {"MASTER_ADDR": "h", "MASTER_PORT": "6000", "NODE_RANK": "0"}
    )
    assert place.world_size == trainer.devices * trainer.num_nodes
    assert all("\n" not in problem for problem in path_problems(whole))
    run_folder(whole)


@settings(max_examples=100)
@given(data=st.data(), name=st.sampled_from(sorted(RECIPES)))
def test_any_value_of_any_key_is_a_plan_or_a_sentence(data: st.DataObject, name: str) -> None:
    cfg = copy.deepcopy(recipe(name))
    keys = [path for path, _, _ in walk(RECIPES[name])]
    changes = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, min_size=1, max_size=3))
    try:
        for path, value in changes.items():
            OmegaConf.update(cfg, path, value, merge=False, force_add=True)
    except Exception:  # OmegaConf itself has no such tree: a key below a value
        return
    try:
        plan(cfg)
    except UserError as error:
        assert all(0 < len(line) < LONGEST_LINE for line in str(error).splitlines())


KEYS = [
    "model.optim.lr", "model", "data", "model/llm", "model.data.data_path", "trainer.devices", "+x", "++model.optim",
    "~model.seed", "~model", "", ".", "a..b", "model.", ".model", "model[0]", "@", "data@model.optim", "defaults",
    "_target_", "hydra", "hydra.mode", "hydra/launcher", "model.optim.betas", "plugins", "ü",
]  # fmt: skip
TEXTS = [
    "", "1", "null", "???", "[", "{", "a b", "'x'", '"', "${", "${nowhere}", "${model}", "${multiply:1,x}", "1,2",
    "choice(a,b)", "sort(3,1)", "\\", "a=b", "é=ü", "\0", "\n", "\ud83d", "{a:{b:[1,2]}}", "nan", "-inf", "1e400",
    "x" * 3000, "!!python/object:os.system", "*", "from_checkpoint", "[" * 300, "1" * 5000, "true",
]  # fmt: skip


@settings(max_examples=40)
@given(
    key=st.sampled_from(KEYS),
    sign=st.sampled_from(["=", "=", "==", ""]),
    text=st.sampled_from(TEXTS) | st.text(max_size=5),
)
def test_any_override_is_a_tree_or_a_sentence(key: str, sign: str, text: str) -> None:
    try:
        load("quickstart_finetune", [f"{key}{sign}{text}"])
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=1", "Config group override must be a string or a list"),
        (
            "model.rope_scaling={rope_type:llama3,factor:8}",
            "rope_scaling: low_freq_factor is None, expected a number",
        ),
        (
            "model.rope_scaling={rope_type:yarn}",
            "rope_scaling: factor is None, expected a number above 0",
        ),
    ],
)
def test_what_hydra_or_transformers_would_stumble_over_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("quickstart_finetune", [override])
