"""Complete YAML files of NeVA's users, with NeVA's defaults, are taken as they are or refused in one report."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neva.cli import main
from neva.config.difference import differences
from neva.config.language import language_config_of
from neva.config.load import load
from neva.config.migrate import migrate
from neva.config.parts import part_rules
from neva.errors import ConfigError
from tests.published import write_configs

YAMLS = Path(__file__).parent / "neva_yaml"


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two folders that the YAMLs name, as far as sizes go."""
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("name", "prefix", "others"),
    [
        ("llava_7b_pretrain", "llava-pretrain", {"model.micro_batch_size": ("2", "32")}),
        (
            "llava_7b_finetune",
            "llava-sft",
            {
                "model.micro_batch_size": ("2", "8"),
                "model.mega_batch_mult": ("50", "null"),
                "model.data.dataloader_type": ("modality", "cyclic"),
                "model.activations_checkpoint_granularity": ("null", "full"),
                "model.activations_checkpoint_method": ("null", "uniform"),
                "model.activations_checkpoint_num_layers": ("null", "1"),
            },
        ),
    ],
)
def test_a_yaml_with_nevas_defaults_is_the_shipped_recipe(
    name: str, prefix: str, others: dict[str, tuple[str, str]]
) -> None:
    theirs, ours = load(name, [], YAMLS), load(name, [])
    unlike = {key: (first, second) for key, first, second in differences(theirs, ours) if second != "-"}
    assert unlike == {
        "exp_manager.checkpoint_callback_params.filename": (
            f"{prefix}-{{step}}-{{consumed_samples}}",
            f"{name}-{{step}}-{{consumed_samples}}",
        ),
        "model.tokenizer.type": ("checkpoints/llama2_tokenizer", "checkpoints/vicuna-7b-v1.5"),
        "model.mm_cfg.llm.model_type": ("llama_2", "null"),
        "model.data.num_frames": ("-1", "8"),
        "trainer.limit_val_batches": ("0.0", "null"),
        **others,
    }


def test_what_was_filled_in_and_what_has_no_effect_is_one_line_each() -> None:
    remarks: list[str] = []
    load("llava_7b_pretrain", [], YAMLS, remarks.append)
    lacking, ignored = remarks
    assert lacking.startswith("not in the YAML, by neva's defaults: ")
    assert "model.loss_average=token, " in lacking
    assert ignored.startswith("without effect here")
    keys = ignored.partition("): ")[2].split(", ")
    for key in (
        "name",
        "model.masked_softmax_fusion",
        "trainer.check_val_every_n_epoch",
        "model.transformer_engine",
    ):
        assert key in keys
    assert "model.fp8" not in keys, "it says what happens anyway"


def test_a_shipped_recipe_needs_no_remark() -> None:
    remarks: list[str] = []
    load("llava_7b_pretrain", [], tell=remarks.append)
    load("llava_7b_inference", [], tell=remarks.append)
    assert remarks == []


def test_the_inference_yaml_is_taken_with_its_knobs() -> None:
    cfg = load("llava_7b_inference", ["trainer.accelerator=cpu"], YAMLS)
    assert (cfg.trainer.accelerator, cfg.inference.batch_size) == ("cpu", 8)
    assert list(cfg.inference.end_strings) == ["<extra_id_1>", "<extra_id_7>"]


def test_what_is_not_built_is_refused_in_one_report() -> None:
    with pytest.raises(ConfigError) as caught:
        load("llava_llama3_8b_finetune", ["model.headscale=true", "model.hidden_dropout=0.1"], YAMLS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all(" is refused: " in line for line in lines)


def test_tiles_that_no_projector_joins_are_refused_and_those_that_one_joins_are_taken() -> None:
    given = ["model.vocab_size=128256"]
    with pytest.raises(
        ConfigError, match=r"^model\.mm_cfg\.use_image_tile=true needs a projector that joins"
    ):
        load("llava_llama3_8b_finetune", given, YAMLS)
    joined = [*given, "model.mm_cfg.mm_mlp_adapter_type=mlp2x_gelu_downsample"]
    with pytest.raises(ConfigError, match=r"model\.data\.crop_size=.336,336. but the tower .*_tile=true"):
        load("llava_llama3_8b_finetune", joined, YAMLS)
    twice = ["model.data.crop_size=[672,672]", "model.data.image_size=[672,672]"]
    data = load("llava_llama3_8b_finetune", [*joined, *twice], YAMLS).model.data
    assert (data.image_token_len, list(data.image_size)) == (576, [672, 672])


def test_a_yaml_with_adapters_is_taken_with_the_rates_that_neva_fixes() -> None:
    model = load("neva_peft", [], YAMLS).model
    lora = language_config_of(model).lora
    assert lora is not None
    assert (lora.rank, lora.scale, lora.layers) == (32, 1.0, None)
    assert lora.sites == (("self_attention.linear_qkv", ("whole",)),)
    rules = part_rules(model)
    assert {name for name, rule in rules.items() if rule.is_trained} == {"projector", "adapters"}
    assert (rules["projector"].lr_ratio, rules["adapters"].lr_ratio) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.peft.peft_scheme=ptuning",
            "model.peft.peft_scheme=ptuning is refused: neva trains LoRA adapters",
        ),
        ("model.mm_cfg.llm.freeze=false", "model.mm_cfg.llm.freeze=false with model.peft.peft_scheme=lora"),
        (
            "model.peft.lora_tuning.layer_selection=[33]",
            "model.peft.lora_tuning.layer_selection names layer 33 of 32",
        ),
        ("model.peft.lora_tuning.target_modules=[]", "model.peft.lora_tuning.target_modules is empty"),
        (
            "model.peft.lora_tuning.target_modules=[q_proj]",
            'model.peft.lora_tuning.target_modules=["q_proj"] names q of',
        ),
        (
            "model.peft.lora_tuning.vision_target_modules=[o_proj]",
            "model.peft.lora_tuning.vision_target_modules names o_proj; expected all, fc1, fc2, k_proj, out_proj, "
            "q_proj, v_proj with a tower of type clip",
        ),
        (
            "model.peft.lora_tuning.weight_tying=true",
            "model.peft.lora_tuning.weight_tying=true is refused: every",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("neva_peft", [override], YAMLS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.posistion_embedding_type=rope",
            "unknown key model.posistion_embedding_type; nearest: model.position_embedding_type",
        ),
        (
            "trainer.limit_val_batches=1.0",
            "trainer.limit_val_batches=1.0 but there is nothing to validate on: ",
        ),
        (
            "model.mm_cfg.llm.model_type=lama_2",
            "model.mm_cfg.llm.model_type=lama_2: must be one of null, nvgpt, ",
        ),
        ("model.precision=32", "model.precision=32 but trainer.precision=bf16: set only the latter"),
        ("model.num_layers=40", "model.num_layers=40 but checkpoints/vicuna-7b-v1.5/config.json gives 32: "),
        (
            "model.mm_cfg.vision_encoder.hidden_size=768",
            "model.mm_cfg.vision_encoder.hidden_size=768 but checkpoints/clip-vit-large-patch14-336/config.json gives ",
        ),
    ],
)
def test_a_mistake_in_such_a_yaml_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("llava_7b_pretrain", [override], YAMLS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_yaml_that_is_none_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml.*line 1"):
        load("broken", [], tmp_path)
    (tmp_path / "list.yaml").write_text("- model")
    with pytest.raises(ConfigError, match=r"list\.yaml"):
        load("list", [], tmp_path)


@pytest.mark.parametrize("name", ["llava_7b_pretrain", "llava_7b_inference"])
def test_a_migrated_yaml_is_the_same_run(name: str, tmp_path: Path) -> None:
    recipe, refused = migrate(YAMLS / f"{name}.yaml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{name}.yaml").write_text(recipe)
    theirs, migrated = load(name, [], YAMLS), load(name, [], tmp_path / "mine")
    left_out = [line for line in recipe.splitlines() if line.startswith("# left out")]
    for key, _, second in differences(theirs, migrated):
        assert second == "-"
        assert any(key.startswith(word.strip(" ,:")) for line in left_out for word in line.split()), key
    assert refused == []


def test_migrating_names_files_of_the_groups_and_keeps_what_differs() -> None:
    recipe, _ = migrate(YAMLS / "llava_7b_pretrain.yaml")
    written = OmegaConf.create(recipe)
    chosen = {key: value for entry in written.defaults if entry != "_self_" for key, value in entry.items()}
    assert (chosen["model/llm"], chosen["data"], chosen["stage"]) == (
        "vicuna_7b",
        "llava_pretrain",
        "pretrain",
    )
    assert written.model.micro_batch_size == 2
    assert "optim" not in written.model


def test_what_cannot_be_migrated_is_said_in_the_recipe_and_by_the_exit_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (YAMLS / "neva_peft.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("peft_scheme: lora", "peft_scheme: ptuning"))
    assert main(["config", "migrate", str(tmp_path / "mine.yaml")]) == 1
    printed = capsys.readouterr()
    assert "# refused: model.peft.peft_scheme=ptuning is refused: " in printed.out
    assert printed.err.startswith("neva: model.peft.peft_scheme=ptuning is refused: ")


def test_two_configurations_are_compared_key_by_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "diff", "llava_7b_pretrain", "llava_7b_pretrain"]) == 0
    assert main(["config", "diff", "llava_7b_pretrain", str(YAMLS / "llava_7b_pretrain.yaml")]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model.micro_batch_size", "32", "2"] in lines
    assert ["model.fp8_margin", "-", "0"] in lines


def test_a_recipe_of_ones_own_builds_on_the_files_of_neva(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [llava_7b_pretrain, _self_]\nmodel: {seed: 7}\n")
    assert load("mine", ["data=llava_finetune"], tmp_path).model.seed == 7
