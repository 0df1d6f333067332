"""Which layouts a model and a number of processes allow."""

from pathlib import Path

import pytest

from neva.config.compose import CONF_DIR
from neva.config.layout import stage_layers
from neva.config.load import load
from neva.errors import ConfigError

LAYERS_32 = "llava_7b_finetune"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((32, 4), [8, 8, 8, 8]),
        ((32, 1), [32]),
        ((32, 5), None),
        ((30, 4, 6), [6, 8, 8, 8]),
        ((32, 4, 7, 7), [7, 9, 9, 7]),
        ((32, 2, 12, 20), [12, 20]),
        ((32, 2, 12, 19), None),
        ((32, 4, 32), None),
        ((4, 2, 1), [1, 3]),
    ],
)
def test_layers_are_assigned_to_stages(arguments: tuple[int, ...], expected: list[int] | None) -> None:
    assert stage_layers(*arguments) == expected


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONF_DIR / "parallel").glob("*.yaml")))
@pytest.mark.parametrize("recipe", ["llava_7b_pretrain", "llava_llama3_8b_finetune"])
def test_every_preset_goes_with_a_recipe_on_two_nodes(recipe: str, preset: str) -> None:
    if preset == "ep8":  # only these have experts to share out
        recipe = recipe.replace("7b", "mixtral_8x7b").replace("llama3_8b", "mixtral_8x7b")
    load(recipe, [f"parallel={preset}", "model.micro_batch_size=4", "trainer.num_nodes=2"])


def test_a_preset_says_what_it_is_named_for() -> None:
    model = load(LAYERS_32, ["parallel=tp4_pp2_vp2"]).model
    assert (model.tensor_model_parallel_size, model.pipeline_model_parallel_size) == (4, 2)
    assert (model.virtual_pipeline_model_parallel_size, model.sequence_parallel) == (2, True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("pipeline_model_parallel_size=3 trainer.devices=3", "num_layers=32 cannot be divided by"),
        ("tensor_model_parallel_size=5 trainer.devices=5", "num_attention_heads=32 cannot be divided by"),
        (
            "context_parallel_size=3",
            "8 processes cannot be divided into tensor 1 x pipeline 1 x context 3 = 3",
        ),
        ("num_layers_in_first_pipeline_stage=7", "act only with model.pipeline_model_parallel_size > 1"),
        ("pipeline_model_parallel_size=4 num_layers_in_first_pipeline_stage=7", "cannot be assigned evenly"),
        ("virtual_pipeline_model_parallel_size=2", "interleaving takes 2 or more of both"),
        (
            "pipeline_model_parallel_size=8 virtual_pipeline_model_parallel_size=3",
            "stages of [4] layers cannot be",
        ),
        (
            "pipeline_model_parallel_size=4 virtual_pipeline_model_parallel_size=2 global_batch_size=48",
            "a step has 3 micro batches on each rank",
        ),
        (
            "context_parallel_size=2 data.pad_to_multiple_of=6",
            "cannot be divided by 4, the pieces that context",
        ),
    ],
)
def test_what_cannot_be_laid_out_is_refused(overrides: str, message: str) -> None:
    words = [word if word.startswith("trainer.") else f"model.{word}" for word in overrides.split()]
    with pytest.raises(ConfigError, match=".*") as caught:
        load(LAYERS_32, words)
    assert message in str(caught.value)


def test_presets_are_described_where_they_are_chosen() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "parallel.md").read_text()
    for path in (CONF_DIR / "parallel").glob("*.yaml"):
        assert f"`{path.stem}`" in page


EXPERTS = "llava_mixtral_8x7b_pretrain"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("expert_model_parallel_size=3 trainer.devices=3", "num_moe_experts=8 cannot be divided by"),
        (
            "expert_model_parallel_size=8 tensor_model_parallel_size=2 sequence_parallel=true",
            "are 4 of 8 processes",
        ),
        ("expert_model_parallel_size=1 tensor_model_parallel_size=2", "set the latter to true"),
        ("trainer.precision=16", "would scale the loss apart; use bf16"),
        ("trainer.samples.prompt_file=prompts.jsonl", "ranks answer each by itself"),
        ("moe_router_topk=9", "expected the experts of a token, 1 to 8"),
        ("moe_router_topk=1", "the router learn nothing"),
        ("moe_router_load_balancing_type=sinkhorn", "other experts in training than in generation"),
        ("moe_token_dropping=true", "every token goes to all of its experts"),
        ("moe_expert_capacity_factor=1.25", "every token goes to all of its experts"),
    ],
)
def test_what_cannot_go_with_experts_is_refused(overrides: str, message: str) -> None:
    words = [word if word.startswith("trainer.") else f"model.{word}" for word in overrides.split()]
    batch = ["model.micro_batch_size=1", "model.global_batch_size=24"]
    added = {"moe_token_dropping", "moe_expert_capacity_factor"}
    words = [f"+{word}" if word.split("=")[0].removeprefix("model.") in added else word for word in words]
    with pytest.raises(ConfigError) as caught:
        load(EXPERTS, [*batch, *words])
    assert message in str(caught.value)


def test_experts_are_shared_out_only_where_there_are_some() -> None:
    with pytest.raises(ConfigError, match="of which this language model has none"):
        load(LAYERS_32, ["model.expert_model_parallel_size=2"])


def test_what_is_not_said_of_experts_follows_as_in_nemo() -> None:
    model = load(LAYERS_32, ["model.num_moe_experts=4", "model.moe_router_topk=2"]).model
    said = (model.moe_ffn_hidden_size, model.moe_router_pre_softmax, model.moe_aux_loss_coeff)
    assert said == (model.ffn_hidden_size, False, 0.0)
