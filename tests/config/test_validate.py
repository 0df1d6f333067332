"""What must hold between keys."""

import pytest

from neva.config.load import load
from neva.config.validate import validate
from neva.errors import ConfigError


def problems(recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, overrides)
    return str(caught.value)


def test_sequence_parallel_needs_tensor_parallel_and_sequences_that_divide() -> None:
    assert "set it with tensor > 1" in problems("llava_7b_pretrain", "model.sequence_parallel=true")
    uneven = problems(
        "llava_7b_pretrain",
        "model.sequence_parallel=true",
        "model.tensor_model_parallel_size=8",
        "model.data.pad_to_multiple_of=12",
    )
    assert "pad_to_multiple_of=12 cannot be divided by 8, the pieces that context parallel 1" in uneven


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.global_batch_size=100"], "model.global_batch_size=100 cannot be divided by micro batch 32 x data "
         "parallel 8 = 256"),
        (["trainer.devices=3"], "cannot be divided by micro batch 32 x data parallel 3 = 96"),
        (["trainer.num_nodes=3"], "x data parallel 24 = 768"),
        (["model.precision=32"], "model.precision=32 but trainer.precision=bf16"),
        (["model.num_query_groups=5"], "model.num_attention_heads=32 cannot be divided by model.num_query_groups=5"),
        (["model.loss_average=micro_batch", "model.context_parallel_size=2"], "no rank has a whole micro batch then"),
        (["model.encoder_seq_length=576"], "an image takes 576 positions, but model.encoder_seq_length=576 leaves"),
        (["model.max_position_embeddings=1024"], "model.encoder_seq_length=2048 exceeds "
         "model.max_position_embeddings=1024"),
        (["model.mm_cfg.vision_encoder.vision_select_layer=25"], "a tower of 24 layers has hidden states -25 to 24"),
        (["model.mm_cfg.vision_encoder.num_attention_heads=7"], "hidden_size=1024 cannot be divided by its "
         "num_attention_heads=7"),
        (["model.fsdp_sharding_strategy=grad"], "fsdp_sharding_strategy=grad acts only with model.fsdp=true"),
        (["trainer.max_steps=0"], "trains nothing"),
        (["model.optim.cpu_offload=true", "trainer.precision=32"], "it moves main weights of 16-bit training"),
        (["trainer.max_epochs=-1"], "never end"),
        (["model.optim.sched.min_lr=0.1"], "model.optim.sched.min_lr=0.1 exceeds model.optim.lr=0.001"),
        (["model.activations_checkpoint_granularity=full"], "also needs model.activations_checkpoint_method"),
        (["model.fp8_e4m3=true"], "model.fp8_e4m3=true acts with model.fp8=true only"),
        (["model.fp8=true", "model.num_moe_experts=4", "model.moe_router_topk=2"], "model.fp8=true with experts"),
        (["model.fp8=true", "model.ffn_hidden_size=11000"], "model.fp8=true with ffn_hidden_size / tensor parallel = "
         "11000: kernels take matrices in multiples of 16"),
        (["model.activations_checkpoint_method=block"], "act only with model.activations_checkpoint_granularity=full"),
        (["model.mm_cfg.mm_mlp_adapter_freeze=true"], "all frozen, nothing is left to train"),
        (["model.restore_from_path=a.nemo", "model.mm_cfg.pretrain_mm_mlp_adapter=b.nemo"], "model.restore_from_path="
         "a.nemo and model.mm_cfg.pretrain_mm_mlp_adapter=b.nemo both bring a projector"),
        (["+exp_manager.summary_writer_kwargs={nope: 1}"], "summary_writer_kwargs has nope, which TensorBoard's"),
        *(
            ([f"exp_manager.checkpoint_callback_params.filename='{name}'"], f"filename={name}: expected a name without")
            for name in ("", ".a-{step}", "a/{step}", "{step", "a}", "{step!r}", "{step}-end", "{step}-last")
        ),
        (["exp_manager.create_wandb_logger=true"], "also needs exp_manager.wandb_logger_kwargs.project"),
        (["model.tokenizer.library=sentencepiece"], "also needs model.tokenizer.model"),
        (["model.tokenizer.type=null"], "also needs model.tokenizer.type"),
        (["model.data.packed_sequence=true", "model.data.dataloader_type=modality"], "dataloader_type=modality with "
         "model.data.packed_sequence=true"),
        (["model.data.packed_sequence=true", "model.data.packed_length=1024"], "packed_length=1024 is shorter than "
         "model.encoder_seq_length=2048"),
        (["model.data.packed_length=4096"], "packed_length=4096 acts only with model.data.packed_sequence=true"),
        (["model.drop_last=false", "model.data.dataloader_type=single"], "drop_last=false with "
         "model.data.dataloader_type=single"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named_with_its_numbers(overrides: list[str], message: str) -> None:
    assert message in problems("llava_7b_pretrain", *overrides)


def test_recompute_may_not_span_more_layers_than_there_are() -> None:
    found = problems("llava_7b_finetune", "model.activations_checkpoint_num_layers=33")
    assert found == "model.activations_checkpoint_num_layers=33 exceeds the 32 layers"
    staged = ["model.pipeline_model_parallel_size=4", "model.activations_checkpoint_num_layers=9"]
    assert problems("llava_7b_finetune", *staged).endswith("num_layers=9 exceeds the 8 layers")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tensor_model_parallel_size=2", "trainer.devices=1 x trainer.num_nodes=1 processes cannot be divided"),
        ('inference.end_strings=["",stop]', "inference.end_strings has an empty string, in front of which"),
        ("inference.min_tokens_to_generate=300", "min_tokens_to_generate=300 exceeds inference.tokens_to_generate=256"),
    ],
)  # fmt: skip
def test_inference_is_checked_too(override: str, message: str) -> None:
    assert message in problems("llava_7b_inference", override)


def test_checkpoints_are_ranked_by_what_is_logged() -> None:
    params = "exp_manager.checkpoint_callback_params"
    message = problems("llava_7b_pretrain", f"{params}.monitor=val_loss")
    assert message.startswith(f"{params}.monitor=val_loss is not logged")
    assert "expected one of step, loss, lr, grad_norm, label_tokens, epoch, consumed_samples (" in message
    load("llava_7b_pretrain", [f"{params}.monitor=loss", f"{params}.mode=min"])
    load("llava_7b_pretrain", [f"{params}.monitor=val_loss", f"{params}.save_top_k=0"])
    load("llava_7b_pretrain", [f"{params}.monitor=loss_scale", "trainer.precision=16"])


def test_all_contradictions_are_reported_together() -> None:
    found = problems(
        "llava_7b_pretrain",
        "model.global_batch_size=100",
        "model.sequence_parallel=true",
        "trainer.max_steps=0",
    )
    assert len(found.splitlines()) == 3


def test_a_world_that_the_layout_does_not_divide_is_refused() -> None:
    cfg = load("llava_7b_pretrain", [])
    cfg.model.tensor_model_parallel_size = 3
    with pytest.raises(
        ConfigError, match=r"8 processes cannot be divided into tensor 3 x pipeline 1 x context 1 = 3"
    ):
        validate(cfg, world_size=8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.data.validation=a.json", "model.data.validation_split=0.1"], "both hold something out: give one"),
        (["trainer.limit_val_batches=3"], "trainer.limit_val_batches=3 but there is nothing to validate on"),
        (
            ["trainer.limit_val_batches=0.0", "model.data.validation=a.json"],
            "trainer.limit_val_batches=0.0 but something is held out",
        ),
        (["trainer.val_check_interval=1.5"], "trainer.val_check_interval=1.5: a float is a share, at most 1.0"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval=0: must be > 0"),
        (["model.data.validation_split=1.0"], "model.data.validation_split=1.0: must be >= 0 and < 1"),
        (["{}monitor=val_loss", "{}mode=max"], "mode=max would keep the checkpoints that validate worst"),
        (["{}monitor=val_loss", "{}mode=min", "{}every_n_train_steps=700"], "let the former be a multiple"),
        (["{}monitor=val_loss", "{}mode=min", "trainer.val_check_interval=0.5"], "let the former be a multiple"),
    ],
)  # fmt: skip
def test_what_is_held_out_says_one_thing(overrides: list[str], message: str) -> None:
    ranked = any("monitor" in word for word in overrides)
    words = [word.format("exp_manager.checkpoint_callback_params.") for word in overrides]
    assert message in problems(
        "llava_7b_pretrain", *words, *(["model.data.validation_split=0.1"] if ranked else [])
    )


def test_checkpoints_are_ranked_by_validation_where_there_is_one() -> None:
    params = "exp_manager.checkpoint_callback_params"
    ranked = [f"{params}.monitor=val_loss", f"{params}.mode=min", "model.data.validation_split=0.01"]
    load("llava_7b_pretrain", [*ranked, f"{params}.every_n_train_steps=1000"])
