"""Values that follow from checkpoints and from each other."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from neva.config.compose import compose
from neva.config.derive import Standing, resolve, total_steps
from neva.config.derive_language import language_sizes
from neva.config.language import language_config_of
from neva.config.load import load
from neva.config.tower import vision_config_of
from neva.data.position import Position
from neva.errors import ConfigError
from neva.families.configs import DecoderForm, padded_vocab_size
from neva.families.language import language_config_from_hf
from neva.formats.vocabulary import tokenizer_size
from tests.planner.test_published_sizes import PUBLISHED

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
}
SIGLIP = {
    "model_type": "siglip",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    },
}


def folder(path: Path, config: dict[str, Any], **files: Any) -> str:
    path.mkdir()
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def llm(tmp_path: Path) -> str:
    return folder(tmp_path / "llm", LLAMA)


@pytest.fixture
def tower(tmp_path: Path) -> str:
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    return folder(tmp_path / "tower", SIGLIP, preprocessor_config=statistics)


def test_sizes_come_from_the_checkpoints(llm: str, tower: str) -> None:
    model = load(
        "llava_7b_pretrain",
        [
            "model/llm=from_checkpoint",
            f"model.mm_cfg.llm.from_pretrained={llm}",
            "model/vision_encoder=from_checkpoint",
            f"model.mm_cfg.vision_encoder.from_pretrained={tower}",
        ],
    ).model
    language, vision = language_config_of(model), vision_config_of(model)
    assert (language.num_layers, language.hidden_size, language.ffn_hidden_size) == (3, 48, 80)
    assert (language.num_heads, language.num_query_groups, language.head_dim) == (6, 2, 8)
    assert (language.vocab_size, language.padded_vocab_size, language.max_positions) == (96, 128, 2048)
    assert (language.rope_theta, language.rms_norm_eps, language.tied) == (500000.0, 1e-6, True)
    assert language.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert (vision.model_type, vision.num_tokens, vision.class_token_length) == ("siglip", 16, 0)
    # what a SigLIP config.json leaves out: transformers' SiglipVisionConfig
    assert (vision.hidden_act, vision.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    tower_cfg = model.mm_cfg.vision_encoder
    assert (tower_cfg.image_mean, tower_cfg.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (model.data.image_token_len, model.data.crop_size, model.data.image_size) == (
        16,
        [28, 28],
        [28, 28],
    )


def test_a_size_that_contradicts_the_checkpoint_gives_both_numbers(llm: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            "llava_7b_pretrain",
            [f"model.mm_cfg.llm.from_pretrained={llm}", "model.num_layers=32", "model.hidden_size=4096"],
        )
    remedy = "correct the key or leave it out (in a tree of your own: model/llm=from_checkpoint)"
    assert f"model.num_layers=32 but {llm}/config.json gives 3: {remedy}" in str(caught.value).splitlines()
    assert (
        f"model.hidden_size=4096 but {llm}/config.json gives 48: {remedy}" in str(caught.value).splitlines()
    )


def test_the_sizes_of_a_shipped_recipe_give_way_to_a_checkpoint(llm: str, tower: str) -> None:
    parts = [
        f"model.mm_cfg.llm.from_pretrained={llm}",
        f"model.mm_cfg.vision_encoder.from_pretrained={tower}",
    ]
    groups = ["model/llm=from_checkpoint", "model/vision_encoder=from_checkpoint"]
    assert load("llava_7b_pretrain", parts) == load("llava_7b_pretrain", [*parts, *groups])


def test_a_kept_class_token_and_joined_layers_are_resolved_and_recorded() -> None:
    tower = "model.mm_cfg.vision_encoder"
    given = [f"{tower}.class_token_length=0", f"{tower}.vision_select_layer=[-2,5]"]
    model = load("llava_7b_pretrain", given).model
    vision = vision_config_of(model)
    assert (vision.select_layers, vision.feature_size, vision.kept_tokens) == ((-2, 5), 2048, 1)
    assert model.data.image_token_len == 577
    with pytest.raises(
        ConfigError, match=r"vision_select_layer=\[-2,99\]: a tower of 24 layers has hidden states"
    ):
        load("llava_7b_pretrain", [f"{tower}.vision_select_layer=[-2,99]"])


def test_another_input_size_decides_over_positions_and_crop_and_leaves_the_checkpoints_size() -> None:
    model = load("llava_7b_pretrain", ["model.mm_cfg.vision_encoder.input_size=448"]).model
    assert (model.data.image_token_len, model.data.image_size) == (1024, [448, 448])
    assert model.mm_cfg.vision_encoder.image_size == 336
    with pytest.raises(ConfigError, match=r"but the tower \(input_size 448, patch_dim 14\) gives 1024"):
        load(
            "llava_7b_pretrain",
            ["model.mm_cfg.vision_encoder.input_size=448", "model.data.image_token_len=576"],
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.data.image_token_len=575", "model.data.image_token_len=575 but the tower (image_size 336, "
         "patch_dim 14) gives 576"),
        ("model.data.crop_size=[224,224]", "model.data.crop_size=[224,224] but the tower (image_size 336, "
         "patch_dim 14) gives [336,336]"),
        ("model.data.image_size=[384,384]", "model.data.image_size=[384,384] but the tower"),
        ("model.mm_cfg.vision_encoder.crop_size=[224,224]", "crop_size=[224,224] but the tower's image_size gives "
         "[336,336]"),
        ("model.mm_cfg.vision_encoder.class_token_length=2", "class_token_length=2 but a clip tower gives 1"),
        ("exp_manager.checkpoint_callback_params.model_parallel_size=4", "model_parallel_size=4 but tensor x pipeline "
         "parallel gives 1"),
    ],
)  # fmt: skip
def test_a_derived_value_that_is_given_and_wrong_gives_both_numbers(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("llava_7b_pretrain", [override])
    assert message in str(caught.value)


def test_derived_values_may_be_given_when_they_are_right() -> None:
    # as the README of the NeVA fork types them
    load(
        "llava_7b_pretrain",
        [
            "model.data.image_token_len=576",
            "model.data.crop_size=[336,336]",
            "model.data.image_size=[336,336]",
            "model.mm_cfg.vision_encoder.hidden_size=1024",
            "model.mm_cfg.vision_encoder.class_token_length=1",
        ],
    )


def test_sizes_that_nobody_gives_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"not known: .*model\.num_layers.*nowhere/config\.json does not exist"
    ):
        load("llava_7b_pretrain", ["model/llm=from_checkpoint", "model.mm_cfg.llm.from_pretrained=nowhere"])


def test_a_tokenizer_with_more_ids_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokens = {"model": {"vocab": {"a": 0, "b": 511}}, "added_tokens": [{"id": 600, "content": "<x>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    assert tokenizer_size(str(tmp_path)) == tokenizer_size(str(tmp_path / "tokenizer.json")) == 601
    with pytest.raises(ConfigError, match=r"model\.vocab_size=512 but the tokenizer .* has 601 ids"):
        load("quickstart_pretrain", [f"model.tokenizer.type={tmp_path}", "model.vocab_size=512"])
    assert (
        load(
            "quickstart_pretrain", [f"model.tokenizer.type={tmp_path}", "model.vocab_size=null"]
        ).model.vocab_size
        == 601
    )


def test_a_nemo_of_a_language_model_gives_its_sizes(tmp_path: Path) -> None:
    sizes = ["model.num_layers=3", "model.hidden_size=96", "model.num_attention_heads=6"]
    recorded = load("quickstart_pretrain", sizes).model
    text = OmegaConf.to_yaml(recorded).encode()
    with tarfile.open(tmp_path / "llm.nemo", "w") as archive:
        member = tarfile.TarInfo("./model_config.yaml")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    found = language_sizes(str(tmp_path / "llm.nemo"))
    assert (found["num_layers"], found["hidden_size"], found["kv_channels"]) == (3, 96, 16)
    (tmp_path / "extracted").mkdir()
    (tmp_path / "extracted" / "model_config.yaml").write_bytes(text)
    assert language_sizes(str(tmp_path / "extracted")) == found
    with pytest.raises(ConfigError, match=r"model\.num_layers=32 but .*llm\.nemo gives 3"):
        source = f"model.mm_cfg.llm.from_pretrained={tmp_path}/llm.nemo"
        load("llava_7b_pretrain", [source, "model.num_layers=32"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_form_of_a_decoder_comes_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name][1]))
    folder = f"model.mm_cfg.llm.from_pretrained={tmp_path}"
    model = load("llava_7b_finetune", [folder, "model.activation=null"]).model
    found, expected = language_config_of(model), language_config_from_hf(PUBLISHED[name][1])
    kept = {"padded_vocab_size": found.padded_vocab_size, "max_positions": 2048}
    assert found == replace(expected, **kept)
    with pytest.raises(ConfigError, match=r"model\.rotary_percentage=0\.125 but .* gives"):
        load("llava_7b_finetune", [folder, "model.rotary_percentage=0.125"])


def test_a_form_of_ones_own_needs_no_checkpoint_and_nemos_names_are_understood() -> None:
    form = ["model.normalization=layernorm", "model.activation=fast-swiglu", "model.rotary_percentage=0.5"]
    language = language_config_of(load("quickstart_pretrain", form).model)
    assert language.form == DecoderForm(norm="layernorm", rotary_share=0.5)
    with pytest.raises(ConfigError, match="activation=squared-relu is refused: neva has no such decoder yet"):
        load("quickstart_pretrain", ["model.activation=squared-relu"])


def test_a_broken_config_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        load("llava_7b_pretrain", [f"model.mm_cfg.llm.from_pretrained={tmp_path}"])


def test_resolving_leaves_its_argument_alone() -> None:
    cfg = compose("llava_7b_pretrain", [])
    resolve(cfg)
    assert cfg.model.data.image_token_len is None


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"),
    [(1, -1, 25), (2, -1, 50), (-1, 7, 7), (None, 7, 7), (1, 7, 7), (1, 70, 25), (3, 70, 70)],
)
def test_steps_are_whole_global_batches_of_the_epochs_or_fewer(
    max_epochs: int | None, max_steps: int, expected: int
) -> None:
    trainer = OmegaConf.create({"max_epochs": max_epochs, "max_steps": max_steps})
    assert total_steps(trainer, num_samples=103, global_batch_size=4) == expected


@given(
    num_samples=st.integers(4, 30),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    taken=st.integers(0, 20),
    max_epochs=st.integers(1, 3),
    drop_last=st.booleans(),
)
def test_a_run_that_goes_on_takes_what_is_left_of_its_epochs_in_batches_of_another_size(
    num_samples: int, sizes: tuple[int, int], taken: int, max_epochs: int, drop_last: bool
) -> None:
    before, now = sizes
    position = Position(batch_size=before)
    for _ in range(taken):
        position = position.behind(num_samples, before, drop_last)
    assume(position.epoch < max_epochs)
    steps, begin = taken, position
    while begin.batch(num_samples, now, drop_last).epoch < max_epochs:
        begin = begin.behind(num_samples, now, drop_last)
        if begin.epoch * num_samples + begin.offset > max_epochs * num_samples:
            break
        steps += 1
    trainer = OmegaConf.create({"max_epochs": max_epochs, "max_steps": -1})
    standing = Standing(taken, position.epoch, position.offset)
    assert total_steps(trainer, num_samples, now, drop_last, standing) == steps


def test_steps_of_the_published_datasets() -> None:
    # 558,128 and 665,298 records: https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain, LLaVA-Instruct-150K
    trainer = OmegaConf.create({"max_epochs": 1, "max_steps": -1})
    assert (total_steps(trainer, 558_128, 256), total_steps(trainer, 665_298, 128)) == (2180, 5197)


def test_an_epoch_without_a_whole_batch_is_refused() -> None:
    trainer = OmegaConf.create({"max_epochs": 1, "max_steps": -1})
    with pytest.raises(ConfigError, match="3 records do not fill one global batch; .* at most 3, found 4"):
        total_steps(trainer, num_samples=3, global_batch_size=4)


def test_the_vocabulary_is_padded_to_whole_multiples() -> None:
    assert [padded_vocab_size(size, 128, 4) for size in (1, 512, 513, 32000)] == [512, 512, 1024, 32256]


def test_null_is_no_clipping_as_in_lightning() -> None:
    assert load("llava_7b_pretrain", ["trainer.gradient_clip_val=null"]).trainer.gradient_clip_val == 0
