"""FSDP's keys: what is filled in, and what goes with what."""

import pytest

from neva.config.load import load
from neva.errors import ConfigError

RECIPE = "llava_7b_finetune"


def test_one_key_chooses_full_sharding_with_sums_in_float32_and_sharded_checkpoints() -> None:
    model = load(RECIPE, ["model.fsdp=true", "model.fsdp_cpu_offload=true"]).model
    assert (model.fsdp_sharding_strategy, model.fsdp_grad_reduce_dtype) == ("full", 32)
    assert (model.fsdp_sharded_checkpoint, model.fsdp_cpu_offload) == (True, True)
    assert "fsdp_sharding_strategy" not in load(RECIPE, []).model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.fsdp_cpu_offload=true", "fsdp_cpu_offload=true acts only with model.fsdp=true"),
        (
            "parallel=fsdp model.pipeline_model_parallel_size=2",
            "model.pipeline_model_parallel_size=2 with model.fsdp=true is refused: neva's FSDP cuts models of",
        ),
        (
            "parallel=tp4 model.fsdp=true model.fsdp_cpu_offload=true",
            "fsdp_cpu_offload=true with model.tensor_model_parallel_size=4 is refused",
        ),
        (
            "parallel=fsdp_hybrid trainer.num_nodes=2 trainer.devices=3 model.tensor_model_parallel_size=2",
            "trainer.devices=3 is no multiple of tensor x expert parallel, 2",
        ),
        (
            "parallel=fsdp model.data.image_aspect_ratio=keep",
            "image_aspect_ratio=keep with model.fsdp=true is refused",
        ),
        ("parallel=fsdp trainer.precision=16", "trainer.precision=16 with model.fsdp=true is refused"),
        ("parallel=fsdp_hybrid", "trainer.num_nodes=1: use full"),
        (
            "parallel=fsdp model.fsdp_cpu_offload=true trainer.accelerator=cpu",
            "the shares are in CPU memory",
        ),
    ],
)
def test_what_does_not_go_with_fsdp_is_named(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RECIPE, overrides.split())
    assert message in str(caught.value)


def test_hybrid_goes_with_nodes_and_context_parallel_with_all() -> None:
    load(RECIPE, ["parallel=fsdp_hybrid", "trainer.num_nodes=2"])
    load(RECIPE, ["parallel=tp4", "model.fsdp=true", "trainer.num_nodes=2"])
    load(RECIPE, ["parallel=fsdp", "model.context_parallel_size=2", "model.data.pad_to_multiple_of=4"])
