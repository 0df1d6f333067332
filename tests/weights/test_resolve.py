"""Each part's weights come from one place, by one rule."""

import pytest
import torch
from omegaconf import OmegaConf

from neva.constants import ADAPTERS, LANGUAGE_MODEL, PARTS, PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.errors import CheckpointError
from neva.formats.nemo import write_nemo
from neva.weights.resolve import Origin, resolve_nemo, resolve_weights


def nemo(path, *parts):
    weights = [(f"{part}.model.x", torch.ones(2)) for part in parts]
    write_nemo(path, {"vocab_size": 2}, weights, None, None, "test", {})
    return str(path)


def section(language=None, tower=None, adapter=None, restored=None, kind="mlp2x_gelu"):
    mm_cfg = {
        "mm_mlp_adapter_type": kind,
        "llm": {"from_pretrained": language},
        "vision_encoder": {"from_pretrained": tower},
        "pretrain_mm_mlp_adapter": adapter,
    }
    return OmegaConf.create({"mm_cfg": mm_cfg, "restore_from_path": restored})


def test_without_sources_every_part_starts_from_random_weights_and_is_saved():
    found = resolve_weights(section())
    expected = [part for part in PARTS if part != SECOND_TOWER]
    assert found == dict.fromkeys(expected, Origin(None, is_held=False))
    assert all(origin.embedded and str(origin) == "scratch" for origin in found.values())


def test_a_restored_file_comes_before_a_stage_1_projector_and_that_before_folders(tmp_path):
    adapter, restored = (
        nemo(tmp_path / "a.nemo", *PARTS),
        nemo(tmp_path / "r.nemo", PROJECTOR, LANGUAGE_MODEL),
    )
    found = resolve_weights(section("llm", "eye", adapter))
    assert found[PROJECTOR] == Origin(adapter, is_held=True)
    assert found[LANGUAGE_MODEL] == Origin("llm", is_held=False)
    found = resolve_weights(section("llm", "eye", adapter, restored))
    assert found[PROJECTOR] == found[LANGUAGE_MODEL] == Origin(restored, is_held=True)
    assert found[VISION_TOWER] == Origin("eye", is_held=False)
    assert not found[VISION_TOWER].embedded


def test_a_part_that_a_nemo_does_not_hold_is_where_an_override_or_its_configuration_says(tmp_path):
    path, model_cfg = nemo(tmp_path / "m.nemo", PROJECTOR), section("llm", "eye")
    assert [str(origin) for origin in resolve_nemo(path, model_cfg).values()] == ["eye", path, "llm"]
    moved = resolve_nemo(path, model_cfg, {LANGUAGE_MODEL: tmp_path, VISION_TOWER: None})
    assert [str(origin) for origin in moved.values()] == ["eye", path, str(tmp_path)]


def test_a_part_without_tensors_is_held_by_every_file(tmp_path):
    held = Origin(None, is_held=True)
    path = nemo(tmp_path / "m.nemo", LANGUAGE_MODEL, VISION_TOWER)
    for found in (
        resolve_weights(section(adapter=path, kind="identity")),
        resolve_nemo(path, section(kind="identity")),
    ):
        assert found[PROJECTOR] == held and not held.is_nowhere and held.embedded
    assert str(held) == "nowhere, as it has no tensors"
    assert resolve_nemo(path, section())[PROJECTOR].is_nowhere


def test_files_that_hold_no_such_part_are_refused(tmp_path):
    tower = nemo(tmp_path / "tower.nemo", VISION_TOWER)
    with pytest.raises(CheckpointError, match="tower.nemo holds none of projector; expected a .nemo of neva"):
        resolve_weights(section(adapter=tower))
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_weights(section(restored=str(tmp_path / "none.nemo")))


def test_beside_adapters_the_file_that_a_run_started_from_stays_the_base(tmp_path):
    base = nemo(tmp_path / "base.nemo", PROJECTOR, LANGUAGE_MODEL)
    model_cfg = section("llm", "eye", restored=base)
    model_cfg.peft = {"peft_scheme": "lora", "restore_from_path": None}
    found = resolve_weights(model_cfg)
    assert (str(found[LANGUAGE_MODEL]), found[LANGUAGE_MODEL].embedded) == (base, False)
    assert (str(found[PROJECTOR]), found[PROJECTOR].embedded) == (base, True)
    assert (str(found[ADAPTERS]), found[ADAPTERS].embedded) == ("scratch", True)

    adapters = tmp_path / "adapters.nemo"
    names = ("language_model.decoder.layers.0.mlp.linear_fc2.adapter.whole.linear_in", "projector.x")
    write_nemo(adapters, {"vocab_size": 2}, [(n, torch.ones(2, 2)) for n in names], None, None, "test", {})
    opened = resolve_nemo(adapters, model_cfg)
    assert [str(opened[part]) for part in (LANGUAGE_MODEL, PROJECTOR, ADAPTERS)] == [
        base,
        *[str(adapters)] * 2,
    ]
    with pytest.raises(
        CheckpointError, match="holds adapters, which this run would leave out: set model.peft"
    ):
        resolve_weights(section("llm", "eye", restored=str(adapters)))
    model_cfg.peft.restore_from_path = str(adapters)
    assert str(resolve_weights(model_cfg)[ADAPTERS]) == str(adapters)
