"""Every recipe composes into a tree that the schema accepts, and the LLaVA-1.5 ones say what LLaVA-1.5 did."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neva.config.compose import CONF_DIR, compose, recipe_name, recipes, to_force_add
from neva.config.language import language_config_of
from neva.config.load import load
from neva.config.media import media_rules_of
from neva.config.samples import image_tags_of
from neva.config.tower import vision_config_of
from neva.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]

TRAINING = [name for name in recipes() if not name.endswith("_inference")]

OPTIONS = [
    f"{path.parent.relative_to(CONF_DIR)}={path.stem}"
    for path in sorted(CONF_DIR.rglob("*.yaml"))
    if path.parent != CONF_DIR
]


def test_the_recipes_are_those_of_the_documentation() -> None:
    sizes = (
        *("llava_7b", "llava_13b", "llava_llama3_8b", "llava_next_7b", "llava_qwen2_5_7b_siglip"),
        *("asagi_2b", "asagi_4b", "asagi_8b", "asagi_14b", "llava_onevision_qwen2_7b"),
        *("idefics2_llama3_8b", "beni_siglip_stablelm", "llava_mixtral_8x7b", "quickstart"),
    )
    assert set(recipes()) == {
        f"{size}_{job}" for size in sizes for job in ("pretrain", "finetune", "inference")
    } | {
        "pai_llava_mistral_7b_pretrain",
        "idefics2_8b_finetune",
        "idefics2_8b_inference",
        "llava_7b_lora",
        "llava_7b_qlora",
    }


def test_the_package_reads_the_tree_of_the_repository() -> None:
    assert CONF_DIR.samefile(REPOSITORY / "conf")


@pytest.mark.parametrize("name", recipes())
def test_recipe_is_complete_and_accepted(name: str) -> None:
    cfg = load(name, [])
    assert OmegaConf.missing_keys(cfg) == set()
    assert "${" not in OmegaConf.to_yaml(cfg)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_of_a_group_composes(option: str) -> None:
    group, _, name = option.partition("=")
    if group == "base":
        assert "trainer" in compose(f"base/{name}", [])
        return
    if group == "inference":
        assert "temperature" in compose("quickstart_inference", [option]).inference
        return
    assert "model" in compose("llava_7b_pretrain", [option])


# https://github.com/haotian-liu/LLaVA/blob/main/scripts/v1_5/pretrain.sh and finetune.sh: learning_rate, batch
# (8 GPUs x per_device_train_batch_size x gradient_accumulation_steps), warmup_ratio 0.03, weight_decay 0,
# lr_scheduler_type cosine, model_max_length 2048, version, mm_vision_select_layer -2, image_aspect_ratio,
# mm_projector_type, num_train_epochs 1, bf16. 558,128 and 665,298 records; AdamW's and the trainer's defaults
# (betas 0.9 and 0.999, max_grad_norm 1) are those of transformers.
@pytest.mark.parametrize("size", ["llava_7b", "llava_13b"])
@pytest.mark.parametrize(
    ("stage", "lr", "batch", "records", "template", "aspect", "llm_frozen"),
    [
        ("pretrain", 1e-3, 8 * 32, 558_128, "plain", "square", True),
        ("finetune", 2e-5, 8 * 16, 665_298, "v1", "pad", False),
    ],
)
def test_llava_recipe_trains_as_llava_did(
    size: str, stage: str, lr: float, batch: int, records: int, template: str, aspect: str, llm_frozen: bool
) -> None:
    cfg = load(f"{size}_{stage}", [])
    model, optim = cfg.model, cfg.model.optim
    assert (optim.lr, model.global_batch_size) == (lr, batch)
    assert optim.sched.warmup_steps == math.ceil(0.03 * (records // batch))
    assert (optim.sched.name, optim.sched.min_lr, optim.sched.constant_steps) == ("CosineAnnealing", 0.0, 0)
    assert (optim.weight_decay, list(optim.betas), cfg.trainer.gradient_clip_val) == (0.0, [0.9, 0.999], 1.0)
    assert (cfg.trainer.max_epochs, cfg.trainer.max_steps, cfg.trainer.precision) == (1, -1, "bf16")
    assert (model.data.conv_template, model.data.image_aspect_ratio) == (template, aspect)
    assert model.encoder_seq_length == 2048
    assert model.mm_cfg.mm_mlp_adapter_type == "mlp2x_gelu"
    assert model.mm_cfg.vision_encoder.vision_select_layer == -2
    assert (model.mm_cfg.llm.freeze, model.mm_cfg.vision_encoder.freeze) == (llm_frozen, True)
    assert model.data.image_token_len == 576


def test_stage_two_takes_the_projector_that_stage_one_writes() -> None:
    for size in ("llava_7b", "llava_13b", "llava_llama3_8b", "idefics2_llama3_8b"):
        name = load(f"{size}_pretrain", []).exp_manager.name
        adapter = load(f"{size}_finetune", []).model.mm_cfg.pretrain_mm_mlp_adapter
        assert adapter == f"nemo_experiments/{name}/checkpoints/{name}.nemo"
        final = load(f"{size}_finetune", []).exp_manager.name
        answers_with = load(f"{size}_inference", []).neva_model_file
        assert answers_with == f"nemo_experiments/{final}/checkpoints/{final}.nemo"


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("2b", 1_459_718_144), ("4b", 3_171_068_928), ("8b", 6_476_271_616), ("14b", 12_688_184_320)],
)
def test_models_of_asagi_have_the_non_embedding_parameters_that_llm_jp_publishes(
    size: str, parameters: int
) -> None:
    pretrain, finetune = (load(f"asagi_{size}_{stage}", []).model for stage in ("pretrain", "finetune"))
    language = language_config_of(finetune)
    assert language == language_config_of(pretrain) and language.head_dim == 128
    width = language.hidden_size
    layer = 4 * width**2 + 3 * width * language.ffn_hidden_size + 2 * width
    assert language.num_layers * layer + width == parameters
    expected = f"nemo_experiments/asagi_{size}_pretrain/checkpoints/asagi_{size}_pretrain.nemo"
    assert finetune.mm_cfg.pretrain_mm_mlp_adapter == expected


def test_language_models_have_their_published_sizes() -> None:
    # config.json of lmsys/vicuna-7b-v1.5, lmsys/vicuna-13b-v1.5 and meta-llama/Meta-Llama-3-8B-Instruct
    expected = {
        "llava_7b_pretrain": (32, 4096, 11008, 32, 32, 32000, 10000.0, 1e-5),
        "llava_13b_pretrain": (40, 5120, 13824, 40, 40, 32000, 10000.0, 1e-5),
        "llava_llama3_8b_pretrain": (32, 4096, 14336, 32, 8, 128256, 500000.0, 1e-5),
        "idefics2_8b_finetune": (32, 4096, 14336, 32, 8, 32003, 10000.0, 1e-5),
        "idefics2_llama3_8b_pretrain": (32, 4096, 14336, 32, 8, 128259, 500000.0, 1e-5),
    }
    for name, sizes in expected.items():
        shape = language_config_of(load(name, []).model)
        assert sizes == (
            shape.num_layers,
            shape.hidden_size,
            shape.ffn_hidden_size,
            shape.num_heads,
            shape.num_query_groups,
            shape.vocab_size,
            shape.rope_theta,
            shape.rms_norm_eps,
        )
        assert (shape.head_dim, shape.tied) == (128, False)
        assert shape.padded_vocab_size - shape.vocab_size < 128 * 8


def test_siglip_takes_the_place_of_clip_by_one_word() -> None:
    cfg = load("llava_7b_pretrain", ["model/vision_encoder=siglip_so400m_patch14_384"])
    shape = vision_config_of(cfg.model)
    assert (shape.num_tokens, shape.class_token_length, cfg.model.data.crop_size) == (729, 0, [384, 384])


def test_idefics2_recipes_show_images_as_idefics2_does() -> None:
    """HuggingFaceM4/idefics2-8b: edges of 378 to 980, 64 positions; Leopard's Llama 3: SigLIP-384's 27 x 27 patches."""
    for name, side, largest in (
        ("idefics2_8b_finetune", 980, 70),
        ("idefics2_llama3_8b_finetune", 384, 27),
        ("idefics2_llama3_8b_pretrain", 384, 27),
    ):
        model = load(name, []).model
        vision = vision_config_of(model)
        rules = media_rules_of(model, vision)
        (view,) = rules.largest_image.views
        assert (vision.model_type, vision.image_size) == ("idefics2_vision", side)
        assert (vision.post_layernorm, vision.select_layer) == (True, -1)
        assert rules.largest_image.tokens == 64 and view[:2] == (14 * largest, 14 * largest)
        assert image_tags_of(model) == ("<fake_token_around_image>",) * 2


def test_a_recipe_is_named_or_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"no recipe chosen.*NEMO_CONFIG.*llava_7b_pretrain"):
        recipe_name(None)
    monkeypatch.setenv("NEMO_CONFIG", "llava_7b_finetune")
    assert compose(None, []).exp_manager.name == "llava_7b_finetune"
    assert compose("quickstart_pretrain.yaml", []).exp_manager.name == "quickstart_pretrain"
    with pytest.raises(ConfigError, match=r"no recipe 'llava_8b'.*llava_7b_pretrain"):
        recipe_name("llava_8b")


def test_keys_are_overridden_by_their_dotted_names() -> None:
    cfg = compose(
        "llava_7b_pretrain",
        ["model.optim.lr=1e-4", "+dry_run=true", "model/llm=vicuna_13b", "model.data.crop_size=[336,336]"],
    )
    assert (cfg.model.optim.lr, cfg.dry_run, cfg.model.num_layers) == (1e-4, True, 40)
    assert list(cfg.model.data.crop_size) == [336, 336]


def test_the_multiply_resolver_of_nemo_recipes_works() -> None:
    cfg = compose(
        "llava_7b_pretrain", ["model.tensor_model_parallel_size=4", "model.pipeline_model_parallel_size=2"]
    )
    assert cfg.exp_manager.checkpoint_callback_params.model_parallel_size == 8


@pytest.mark.parametrize(
    ("override", "opened"),
    [
        ("model.x=1", "++model.x=1"),
        ("+model.x=1", "++model.x=1"),
        ("~model.seed", "~model.seed"),
        ("model/llm=vicuna_13b", "model/llm=vicuna_13b"),
        ("data=llava_finetune", "data=llava_finetune"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
        ("exp_manager.name=20240105", '++exp_manager.name="20240105"'),
        ("+exp_manager.name=1_000", '++exp_manager.name="1_000"'),
        ("exp_manager.exp_dir=1e-3", '++exp_manager.exp_dir="1e-3"'),
        ("exp_manager.name=1,2", "++exp_manager.name=1,2"),
        ("exp_manager.name=a b", "++exp_manager.name=a b"),
        ("model.data.data_path=数据/a.json", '++model.data.data_path="数据/a.json"'),
        ("model.data.data_path=~/a&b;c.json", '++model.data.data_path="~/a&b;c.json"'),
        ("model.data.data_path=choice(a,é)", "++model.data.data_path=choice(a,é)"),
        ("model.seed=1_000", "++model.seed=1_000"),
        ("trainer.precision=16", "++trainer.precision=16"),
    ],
)
def test_only_values_are_opened_to_the_schema(override: str, opened: str) -> None:
    assert to_force_add(override) == opened


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optim.lr", "cannot read 'model.optim.lr' .*missing EQUAL.*: write key=value"),
        ("model/llm=llama5", r"Could not find 'model/llm/llama5'.*vicuna_7b"),
        ("model.optim.lr=1e-4,1e-3", "--multirun"),
        ("model.optim.lr=[", r"no viable alternative.*quote a value with"),
        ("model.data.data_path=/data/a={b", r"cannot read 'model.data.data_path=/data/a={b'"),
    ],
)
def test_an_override_that_hydra_cannot_read_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose("llava_7b_pretrain", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llava_7b_pretrian", "no recipe 'llava_7b_pretrian' in .*; nearest: llava_7b_pretrain; recipes: "),
        ("mine/own.yaml", "mine/own.yaml is a file, .*: give --config-dir mine --config-name own"),
        ("{}/mine/own", "own.yaml is a file, .*: give --config-dir .*/mine --config-name own"),
        ("{}/mine/other", "no recipe '.*other' in "),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.yaml").write_text("model:\n  seed: 7\n")
    with pytest.raises(ConfigError, match=message):
        compose(name.format(tmp_path), [])


def test_a_recipe_that_leads_back_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [mine, _self_]\n")
    with pytest.raises(ConfigError, match="^mine: its defaults list leads back to itself"):
        compose("mine", [], tmp_path)


def test_a_recipe_without_its_own_place_in_its_list_comes_last_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [quickstart_pretrain]\nmodel: {seed: 7}\n")
    assert compose("mine", [], tmp_path).model.seed == 7
    assert not recwarn.list


def test_a_tree_of_ones_own_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  seed: 7\n")
    assert compose("mine", [], tmp_path).model.seed == 7


def test_a_checkpoints_name_needs_no_quotes() -> None:
    """NeMo's names hold `=`, which Hydra reads in quotes alone."""
    path = "run/checkpoints/run-step=150-consumed_samples=1500.0-last"
    for written in (path, f"'{path}'"):
        cfg = compose("llava_7b_finetune", [f"exp_manager.resume_from_checkpoint={written}"])
        assert cfg.exp_manager.resume_from_checkpoint == path


def test_the_adapters_of_llava_1_5_are_those_of_its_script() -> None:
    """https://github.com/haotian-liu/LLaVA/blob/main/scripts/v1_5/finetune_lora.sh, and peft's own dropout of it."""
    model = load("llava_7b_lora", []).model
    lora = language_config_of(model).lora
    assert lora is not None and model.mm_cfg.llm.freeze
    assert (lora.rank, lora.alpha, lora.dropout, lora.drops_input) == (128, 256, 0.05, True)
    assert sum(len(pieces) for _, pieces in lora.sites) == 7
    assert (model.optim.lr, model.optim.lr * model.mm_cfg.mm_mlp_adapter_lr_ratio) == (
        2e-4,
        pytest.approx(2e-5),
    )
    assert model.global_batch_size == 128
    packed = load("llava_7b_qlora", [])
    assert language_config_of(packed.model).lora == replace(lora, packing="nf4")
    assert (packed.trainer.devices, packed.model.global_batch_size) == (1, 128)
