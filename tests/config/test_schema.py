"""Unknown keys, wrong values and keys that `neva` refuses, each with the sentence that a user reads."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from neva.config import reference
from neva.config.compose import compose
from neva.config.keys.field import Ignored, Key, Refused
from neva.config.keys.inference import Inference
from neva.config.keys.synonyms import OURS, SYNONYMS
from neva.config.keys.training import Training
from neva.config.schema import check_keys, ignored_keys, nearest, walk
from neva.config.show import as_override
from neva.errors import ConfigError

RECIPES = {Training: "llava_7b_finetune", Inference: "llava_7b_inference"}
RULES = [(root, path, rule) for root in RECIPES for path, _, rule in walk(root)]
REFUSED = [pytest.param(root, path, rule, id=path) for root, path, rule in RULES if isinstance(rule, Refused)]
IGNORED = [pytest.param(root, path, rule, id=path) for root, path, rule in RULES if isinstance(rule, Ignored)]
NOT_YET = [
    pytest.param(root, path, value, why, id=f"{path}={value}")
    for root, path, rule in RULES
    if isinstance(rule, Key)
    for value, why in (rule.not_yet or {}).items()
]

# The keys of llava_7b_pretrain.yaml, llava_7b_finetune.yaml and llava_7b_inference.yaml of the NeMo 1.x NeVA fork,
# with the FSDP keys that its users add. Written out, so that none is forgotten.
NEVA_KEYS = """
trainer: devices num_nodes accelerator precision logger enable_checkpointing use_distributed_sampler max_epochs
  max_steps log_every_n_steps val_check_interval check_val_every_n_epoch limit_val_batches limit_test_batches
  accumulate_grad_batches gradient_clip_val benchmark enable_model_summary num_sanity_val_steps
exp_manager: explicit_log_dir exp_dir name create_wandb_logger resume_if_exists resume_ignore_no_checkpoint
  resume_from_checkpoint create_checkpoint_callback
exp_manager.wandb_logger_kwargs: project name
exp_manager.checkpoint_callback_params: monitor verbose save_top_k mode every_n_train_steps every_n_epochs
  save_on_train_epoch_end always_save_nemo save_nemo_on_train_end filename model_parallel_size
exp_manager.ema: enable decay validate_original_weights every_n_steps cpu_offload
model: precision micro_batch_size global_batch_size mega_batch_mult tensor_model_parallel_size
  pipeline_model_parallel_size virtual_pipeline_model_parallel_size restore_from_path mcore_gpt encoder_seq_length
  max_position_embeddings position_embedding_type num_layers hidden_size ffn_hidden_size num_attention_heads
  init_method_std use_scaled_init_method hidden_dropout attention_dropout ffn_dropout kv_channels
  apply_query_key_layer_scaling normalization layernorm_epsilon do_layer_norm_weight_decay
  make_vocab_size_divisible_by pre_process post_process persist_layer_norm bias activation headscale
  transformer_block_type normalize_attention_scores rotary_percentage rotary_base attention_type
  share_embeddings_and_output_weights overlap_p2p_comm batch_p2p_comm seq_len_interpolation_factor
  num_query_groups use_flash_attention activations_checkpoint_granularity activations_checkpoint_method
  activations_checkpoint_num_layers num_micro_batches_with_partial_activation_checkpoints
  activations_checkpoint_layers_per_pipeline sequence_parallel native_amp_init_scale native_amp_growth_interval
  hysteresis fp32_residual_connection fp16_lm_cross_entropy masked_softmax_fusion bias_dropout_add_fusion
  use_cpu_initialization onnx_safe gradient_accumulation_fusion openai_gelu bias_activation_fusion megatron_legacy
  transformer_engine fp8 fp8_e4m3 fp8_hybrid fp8_margin fp8_interval fp8_amax_history_len fp8_amax_compute_algo
  use_emha megatron_amp_O2 async_grad_allreduce grad_allreduce_chunk_size_mb grad_div_ar_fusion seed
  resume_from_checkpoint apex_transformer_log_level gradient_as_bucket_view ub_tp_comm_overlap dist_ckpt_format
  rampup_batch_size drop_last no_seqlen_plus_one_input_tokens fsdp fsdp_sharding_strategy fsdp_grad_reduce_dtype
  fsdp_sharded_checkpoint fsdp_use_orig_params fsdp_limit_all_gathers fsdp_cpu_offload
  nccl_communicator_config_path sharp
model.mm_cfg: pretrain_mm_mlp_adapter mm_mlp_adapter_type use_im_start_end use_image_tile
model.mm_cfg.llm: from_pretrained freeze model_type
model.mm_cfg.vision_encoder: from_pretrained from_hf patch_dim hidden_size vision_select_layer class_token_length
  freeze vision_encoder_lr_ratio crop_size
model.tokenizer: library type model vocab_file merge_file delimiter sentencepiece_legacy additional_special_tokens
model.data: num_workers dataloader_type data_path image_folder video_folder lazy_preprocess is_multimodal
  sep_image_conv_front image_token_len conv_template image_aspect_ratio crop_size image_size datasets_exclude
  media_type num_frames splice_single_frame sep_token_between_frames eod_mask_loss packed_sequence data_prefix
  validation_drop_last
model.nsys_profile: enabled start_step end_step ranks gen_shape
model.peft: peft_scheme restore_from_path
model.peft.lora_tuning: adapter_dim adapter_dropout column_init_method row_init_method layer_selection weight_tying
  position_embedding_strategy target_modules alpha variant dropout_position a2a_experimental
model.optim: name lr weight_decay betas
model.optim.sched: name warmup_steps constant_steps min_lr
"""
NEVA_INFERENCE_KEYS = """
inference: greedy top_k top_p temperature add_BOS tokens_to_generate all_probs repetition_penalty
  min_tokens_to_generate compute_logprob end_strings images_base_path insert_image_token media_type
  quality toxicity humor creativity violence helpfulness not_appropriate
trainer: devices num_nodes accelerator logger precision
quantization: algorithm enable
: cluster_type tensor_model_parallel_size pipeline_model_parallel_size pipeline_model_parallel_split_rank
  neva_model_file base_model_file tokenizer_model tokenizer_type vision_encoder_path checkpoint_dir checkpoint_name
  hparams_file prompt_file output_file server port web_server share username password web_port
"""


def written_out(text: str) -> set[str]:
    paths: set[str] = set()
    section = ""
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            section, _, line = line.partition(":")
        paths |= {f"{section}.{name}".removeprefix(".") for name in line.split()}
    return paths


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_keys(compose("llava_7b_finetune", overrides))
    return str(caught.value)


@functools.cache
def recipe(root: type) -> DictConfig:
    return compose(RECIPES[root], [])


def changed(root: type, path: str, value: Any) -> DictConfig:
    """The root's recipe with one value set."""
    cfg = copy.deepcopy(recipe(root))
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)
    return cfg


@pytest.mark.parametrize(("root", "text"), [(Training, NEVA_KEYS), (Inference, NEVA_INFERENCE_KEYS)])
def test_every_key_of_neva_is_known(root: type, text: str) -> None:
    assert written_out(text) - {path for path, _, _ in walk(root)} == set()


@pytest.mark.parametrize(("root", "path", "rule"), REFUSED)
def test_a_refused_key_is_refused_and_its_off_values_pass(root: type, path: str, rule: Refused) -> None:
    value = next(other for other in ("something else", True) if other not in rule.off)
    with pytest.raises(ConfigError) as caught:
        check_keys(changed(root, path, value))
    assert str(caught.value).startswith(
        f"{path}={as_override(value)} is refused: {rule.why}; leave the key out"
    )
    for off in rule.off:
        check_keys(changed(root, path, off))


@pytest.mark.parametrize(("root", "path", "rule"), IGNORED)
def test_a_key_without_effect_passes_with_every_value_that_it_has_elsewhere(
    root: type, path: str, rule: Ignored
) -> None:
    for value in rule.choices or (None, True, 7, "text", [1], {"a": 1}):
        cfg = changed(root, path, value)
        check_keys(cfg)
        assert path in ignored_keys(cfg)


@pytest.mark.parametrize(("root", "path", "value", "why"), NOT_YET)
def test_a_value_of_another_system_is_refused_with_its_reason(
    root: type, path: str, value: Any, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_keys(changed(root, path, value))
    assert f"{path}={as_override(value)} is refused: {why}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optim.lrr=1", "unknown key model.optim.lrr; nearest: model.optim.lr"),
        ("model.lr=1", "unknown key model.lr; nearest: model.optim.lr"),
        ("modle.optim.lr=1", "unknown key modle.optim.lr; nearest: model.optim.lr"),
        (
            "model.data.conv_templat=v1",
            "unknown key model.data.conv_templat; nearest: model.data.conv_template",
        ),
        ("model.num_layer=1", "unknown key model.num_layer; nearest: model.num_layers"),
        ("model.warmup_steps=1", "unknown key model.warmup_steps; nearest: model.optim.sched.warmup_steps"),
        ("model.data.x.y=1", "unknown key model.data.x.y; nearest: "),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, message: str) -> None:
    assert problems(override).startswith(message)


def test_words_of_other_trainers_lead_to_the_key_that_means_the_same() -> None:
    assert len(OURS) == sum(map(len, SYNONYMS.values())), "no word leads to two"
    for root, sections in ((Training, ("trainer", "exp_manager", "model")), (Inference, ("inference",))):
        known = [path for path, _, _ in walk(root)]
        for ours, words in SYNONYMS.items():
            if ours.startswith(sections):
                assert [nearest(f"model.{word}", known) for word in words] == [[ours]] * len(words)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optim.lr=0", "model.optim.lr=0: must be > 0"),
        ("model.optim.lr=-1e-3", "model.optim.lr=-0.001: must be > 0"),
        ("model.optim.betas=[0.9,1.0]", "model.optim.betas=[0.9,1.0]: must be 2 values, each >= 0 and < 1"),
        ("model.optim.betas=[0.9]", "model.optim.betas=[0.9]: must be 2 values, each >= 0 and < 1"),
        ("model.micro_batch_size=0", "model.micro_batch_size=0: must be >= 1"),
        ("trainer.max_steps=-2", "trainer.max_steps=-2: must be >= -1"),
        ("model.data.on_error=ignore", "model.data.on_error=ignore: must be one of fail, skip"),
        ("model.mm_cfg.mm_mlp_adapter_type=mlp0x_gelu", "mlp0x_gelu: must be of the form identity, linear"),
        (
            "exp_manager.max_time_per_run=3h",
            "exp_manager.max_time_per_run=3h: must be of the form DD:HH:MM:SS",
        ),
        ("model.mm_cfg.vision_encoder.image_mean=[0,0,2]", "must be 3 values, each >= 0 and <= 1"),
    ],
)
def test_a_value_out_of_range_names_the_range(override: str, message: str) -> None:
    assert message in problems(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optim.lr=fast", "model.optim.lr=fast: expected a number"),
        ("model.optim.lr=null", "model.optim.lr=null: expected a number"),
        ("model.optim.lr=true", "model.optim.lr=true: expected a number"),
        ("model.optim.lr=inf", "model.optim.lr=Infinity: expected a number"),
        ("trainer.join_timeout_s=inf", "trainer.join_timeout_s=Infinity: expected a number"),
        ("model.optim.lr='1e-4'", "model.optim.lr=1e-4: expected a number, found text: leave out its quotes"),
        (
            "trainer.devices=${oc.env:RANKS}",
            "trainer.devices=2: expected a whole number, found text: leave out",
        ),
        ("exp_manager.name=[1]", "exp_manager.name=[1]: expected text"),
        ("exp_manager.name=true", "exp_manager.name=true: expected text: put it in quotes"),
        ("model.num_layers=3.5", "model.num_layers=3.5: expected a whole number or null"),
        ("model.seed=true", "model.seed=true: expected a whole number"),
        ("model.mm_cfg.llm.freeze=1", "model.mm_cfg.llm.freeze=1: expected true or false"),
        ("model.data.datasets_exclude=vqa", "model.data.datasets_exclude=vqa: expected a list, each text"),
        ("model.rope_scaling=8", "model.rope_scaling=8: expected a mapping or null"),
        ("model.optim=adam", "model.optim=adam: expected a section with keys of its own"),
        ("model.optim.lr={a: 1}", 'model.optim.lr={"a":1}: expected a number'),
    ],
)
def test_a_value_of_the_wrong_type_names_the_type(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKS", "2")
    assert message in problems(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "exp_manager.name=${oc.env:NOWHERE}",
            "exp_manager.name=${oc.env:NOWHERE}: \"Environment variable 'NOWHERE' not found\"",
        ),
        ("model.seed=${model.sede}", "model.seed=${model.sede}: Interpolation key 'model.sede' not found"),
        ("model.seed=${model.seed}", "model.seed=${model.seed}: Recursive interpolation detected"),
    ],
)
def test_a_value_that_refers_to_nothing_is_named(override: str, message: str) -> None:
    assert problems(override) == message


def test_a_key_with_dots_in_a_yaml_is_told_from_sections(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [llava_7b_finetune, _self_]\nmodel.optim.lr: 1e-5\n")
    with pytest.raises(
        ConfigError, match="^the YAML has 'model.optim.lr' as one key: write a section for each"
    ):
        check_keys(compose("mine", [], tmp_path))


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".hidden", "a/b", "{step}", "a{"])
def test_a_run_has_the_name_of_a_folder(name: str) -> None:
    assert problems(f"exp_manager.name='{name}'") == (
        f"exp_manager.name={name}: must be of the form a name without / {{ }} or a point in front"
    )


def test_a_missing_key_is_named() -> None:
    assert problems("~model.seed") == "missing key model.seed: add it to the recipe"
    assert problems("~model.optim.sched") == "missing key model.optim.sched: add it to the recipe"


def test_a_key_that_awaits_a_value_says_what_for() -> None:
    cfg = compose("llava_7b_pretrain", ["model/llm=from_checkpoint"])
    with pytest.raises(
        ConfigError, match=r"^model\.mm_cfg\.llm\.from_pretrained needs a value: Hugging Face folder"
    ):
        check_keys(cfg)


def test_one_wrong_value_is_one_problem_where_others_refer_to_it() -> None:
    (problem,) = problems("trainer.precision=64").splitlines()
    assert problem.startswith("trainer.precision=64")


def test_all_problems_are_reported_together() -> None:
    found = problems("model.optim.lr=0", "model.headscale=true", "model.dat.num_workers=3").splitlines()
    assert len(found) == 3


def test_an_interpolation_to_nowhere_is_a_config_error() -> None:
    assert "Interpolation key 'nowhere' not found" in problems("model.optim.lr=${nowhere}")


def test_a_section_may_be_another_one() -> None:
    cfg = compose("llava_7b_finetune", ["model.optim.sched=${copy}", "copy={name: CosineAnnealing}"])
    with pytest.raises(ConfigError, match=r"missing key model\.optim\.sched\.warmup_steps"):
        check_keys(cfg)


def test_zero_does_not_pass_for_false() -> None:
    assert "trainer.logger=0 is refused" in problems("trainer.logger=0")


def test_every_key_of_exp_manager_is_one_of_nemos() -> None:
    from nemo.utils.exp_manager import CallbackParams, EMAParams, ExpManagerConfig

    theirs = {field.name for field in dataclasses.fields(ExpManagerConfig)}
    for section, config in (("checkpoint_callback_params", CallbackParams), ("ema", EMAParams)):
        theirs |= {f"{section}.{field.name}" for field in dataclasses.fields(config)}
    ours = {path.removeprefix("exp_manager.") for _, path, _ in RULES if path.startswith("exp_manager.")}
    # lightning.pytorch.loggers.WandbLogger's arguments, which NeMo passes through
    assert {path for path in ours - theirs if not path.startswith("wandb_logger_kwargs.")} == set()


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration_keys.md"
    assert page.read_text(encoding="utf-8") == reference.page()
