"""A run whose language model transformers runs: it resumes, answers, and leaves what converts with a proof."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neva.config.load import load
from neva.config.tower import vision_config_of
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.errors import CheckpointError, ConfigError
from neva.families.vision import vision_family
from neva.training.callbacks import read_metrics
from tests.convert.tiny import scramble
from tests.training.test_run import Kill, kill_after, run, weights

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> list[str]:
    """Overrides of a recipe with a language model that Megatron does not run: layer norms, biases, no gate."""
    folder = tmp_path_factory.mktemp("starcoder2")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("starcoder2", **SIZES))
    scramble(model, 0).save_pretrained(folder)
    sizes = ("model.num_", "model.hidden_size", "model.ffn_hidden_size")
    return [
        *(override for override in colours if not override.startswith(sizes)),
        "model/llm=from_checkpoint",
        f"model.mm_cfg.llm.from_pretrained={folder}",
        "model.optim.lr=2e-3",
    ]


def test_it_resumes_exactly_and_is_exported_with_a_proof(tmp_path: Path, starcoder: list[str]) -> None:
    every = "exp_manager.checkpoint_callback_params.every_n_train_steps=3"
    overrides = [*starcoder, "model.language_backend=huggingface", every]
    unbroken = run(tmp_path / "a", overrides, steps=7)
    with pytest.raises(Kill):
        kill_after(4, tmp_path / "b", [*overrides, "trainer.max_steps=7"])
    resumed = run(tmp_path / "b", overrides, steps=7)
    first, second = read_metrics(unbroken), read_metrics(resumed)
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert first[-1]["loss"] < 0.8 * first[0]["loss"]
    before, after = weights(unbroken), weights(resumed)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    nemo, folder = unbroken / "checkpoints" / "run.nemo", tmp_path / "hf"
    convert(nemo, folder, Options())
    assert '"verified": true' in (folder / "parity.json").read_text()
    convert(folder, tmp_path / "back.nemo", Options())


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # torch's remark on the projector's view
def test_adapters_train_beside_it_under_fsdp_too_and_cross_to_peft(
    tmp_path: Path, starcoder: list[str]
) -> None:
    overrides = [
        *starcoder,
        "model.language_backend=huggingface",
        "model.mm_cfg.llm.freeze=true",
        "model.peft.peft_scheme=dora",
        "model.peft.lora_tuning.variant=canonical",
        "model.peft.lora_tuning.target_modules=[all]",
        "model.peft.lora_tuning.adapter_dim=4",
        "model.peft.lora_tuning.adapter_dropout=0.3",
        "model.optim.lr=1e-2",
    ]
    tower = vision_config_of(load("quickstart_finetune", overrides).model)
    vision_family(tower.model_type).build(tower).save_pretrained(tmp_path / "tower")
    trained = run(tmp_path / "trained", overrides, steps=1)
    with pytest.raises(
        CheckpointError, match="holds a tower that trained, for which a peft folder has no place"
    ):
        convert(trained / "checkpoints" / "run.nemo", tmp_path / "none", Options())
    overrides += [
        f"model.mm_cfg.vision_encoder.{key}"
        for key in (f"from_pretrained={tmp_path / 'tower'}", "freeze=true", "vision_select_layer=-1")
    ]
    plain = run(tmp_path / "plain", overrides, steps=3)
    shares = run(tmp_path / "shares", [*overrides, "model.fsdp=true"], steps=3)
    first, second = ([row["loss"] for row in read_metrics(folder)] for folder in (plain, shares))
    assert first == pytest.approx(second, rel=1e-5)  # float32 sums in another order
    saved = weights(plain)
    factors = [name for name in saved if ".adapter." in name]
    assert len(factors) == 2 * 6 * 3
    assert {name for name in saved if name.startswith("language_model.")} == set(factors)
    assert all(saved[name].any() for name in factors)
    for target, options in (("peft", Options()), ("merged", Options(merge=True))):
        convert(plain / "checkpoints" / "run.nemo", tmp_path / target, options)
        assert '"verified": true' in (tmp_path / target / "parity.json").read_text()


def test_recomputed_layers_give_the_same_losses(tmp_path: Path, starcoder: list[str]) -> None:
    overrides = [*starcoder, "model.language_backend=huggingface"]
    plain = run(tmp_path / "plain", overrides, steps=2)
    keys = {"granularity": "full", "method": "uniform", "num_layers": 1}
    again = [f"model.activations_checkpoint_{key}={value}" for key, value in keys.items()]
    recomputed = run(tmp_path / "recomputed", [*overrides, *again], steps=2)
    assert [row["loss"] for row in read_metrics(plain)] == [row["loss"] for row in read_metrics(recomputed)]


def test_what_it_cannot_do_is_said_before_it_starts(tmp_path: Path, starcoder: list[str]) -> None:
    with pytest.raises(
        ConfigError, match="not a language model that Megatron runs.*language_backend=huggingface"
    ):
        load("quickstart_finetune", starcoder)
    backend = [*starcoder, "model.language_backend=huggingface"]
    for key, message in {
        "trainer.devices=2 model.tensor_model_parallel_size=2": "whole on every rank",
        "model.activations_checkpoint_granularity=selective": "each layer or none",
        "model.encoder_seq_length=130 model.max_position_embeddings=130": "exceeds the 128 positions",
        "model.peft.peft_scheme=lora model.mm_cfg.llm.freeze=true": "variant=nemo .* which joins no matrices",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load("quickstart_finetune", [*backend, *key.split()])


def test_a_llama_that_megatron_refuses_is_read_by_its_own_class(tmp_path: Path, starcoder: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "mlp_bias": True, **SIZES}))
    biased = [*starcoder, f"model.mm_cfg.llm.from_pretrained={tmp_path}"]
    with pytest.raises(ConfigError, match="mlp_bias is True, expected false"):
        load("quickstart_finetune", biased)
    cfg = load("quickstart_finetune", [*biased, "model.language_backend=huggingface"])
    assert cfg.model.mm_cfg.llm.config.mlp_bias and cfg.model.hidden_size == SIZES["hidden_size"]
