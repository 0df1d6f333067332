"""The llava-hf export: transformers loads it with nothing missing and computes what the native model
computes.
"""

import copy
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, LlavaForConditionalGeneration

from neva.config.media import media_rules_of
from neva.convert.options import Options
from neva.convert.parity.figures import ParityError
from neva.convert.parity.llava import prove_llava
from neva.convert.parity.reference import greedy_outputs
from neva.convert.parity.samples import ParityInput
from neva.convert.readers import llava_hf
from neva.convert.readers.nemo import open_model
from neva.convert.writers.llava_hf import write_llava_hf
from neva.errors import CheckpointError, ConfigError
from neva.formats.hf_folder import FolderWeights
from neva.registry import TEMPLATES
from neva.templates.template import Turn, render
from neva.weights.lazy import Chained
from tests.convert.llava import llava_nemo
from tests.convert.tiny import FAMILIES

pytestmark = pytest.mark.usefixtures("megatron")
NEWLINE = "projector.image_newline"
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def export(tmp_path, **options):
    model = open_model(llava_nemo(tmp_path, **options))
    folder = tmp_path / "export"
    folder.mkdir()
    write_llava_hf(model, folder, None)
    return model, folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_tower_is_proven(tmp_path, family, kind):
    model, folder = export(tmp_path, family=family, kind=kind)
    prove_llava(model, folder)
    report = json.loads((folder / "parity.json").read_text())
    assert report["verified"] is True
    assert report["max_abs_logit_difference"] <= 2e-5  # float32 sums in another order, logits up to 20
    assert report["max_kl_per_position"] <= 1e-8
    assert report["argmax_flips"] == 0
    assert report["greedy_answers_equal"] == report["samples"] == 4


@pytest.mark.parametrize("template", ["v1", "chatml", "plain"])
@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
def test_templates_and_aspect_ratios_are_proven(tmp_path, template, aspect_ratio):
    model, folder = export(tmp_path, template=template, aspect_ratio=aspect_ratio)
    prove_llava(model, folder)


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28]]


@pytest.mark.parametrize("pinpoints", [None, PINPOINTS])
@pytest.mark.parametrize(("family", "kind"), [("llama", "clip"), ("qwen2", "siglip")])
def test_models_with_tiles_are_proven_as_llava_next_and_come_back_bit_for_bit(
    tmp_path, family, kind, pinpoints
):
    model, folder = export(tmp_path, family=family, kind=kind, aspect_ratio="anyres", pinpoints=pinpoints)
    prove_llava(model, folder)
    report = json.loads((folder / "parity.json").read_text())
    assert report["verified"] is True and report["samples"] == report["greedy_answers_equal"] == 4
    assert report["max_abs_logit_difference"] <= 2e-5
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava_next"
    if pinpoints:
        assert config["image_grid_pinpoints"] == PINPOINTS
    back = llava_hf.read(folder, Options())
    assert back.connector == "mlp2x_gelu_newline" and back.config.data.image_aspect_ratio == "anyres"
    assert (
        media_rules_of(back.config, back.vision) == media_rules_of(model.config, model.vision)
        or pinpoints is None
    )
    assert set(back.weights) == set(model.weights)
    for name in model.weights:
        rows = min(len(back.weights[name]), len(model.weights[name]))
        assert torch.equal(back.weights[name][:rows], model.weights[name][:rows]), name


@pytest.mark.parametrize(
    "break_it",
    {
        "no newline": lambda model: replace(
            model, weights=Chained({NEWLINE: torch.zeros(32)}, model.weights)
        ),
        "other resolutions": lambda model: replace(
            model, config=with_pinpoints(model.config, PINPOINTS[2:3])
        ),
    }.values(),
    ids=["no newline", "other resolutions"],
)
def test_the_proof_sees_what_is_wrong_with_tiles(tmp_path, break_it):
    model, folder = export(tmp_path, aspect_ratio="anyres", pinpoints=PINPOINTS)
    with pytest.raises((ParityError, ValueError, IndexError)):
        prove_llava(break_it(model), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints is None, expected a list of height, width"),
        ({"image_grid_pinpoints": [[28, "56"]]}, "expected a list of height, width"),
        ({"image_grid_pinpoints": [[28, 56]]}, "the image processor have other image_grid_pinpoints"),
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter is false"),
    ],
)
def test_a_folder_with_tiles_that_neva_cannot_have_is_refused(tmp_path, changes, message):
    _, folder = export(tmp_path, aspect_ratio="anyres", pinpoints=PINPOINTS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        llava_hf.read(folder, Options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, r"export: .* features are a square, found 17 of a tile"),
        (
            {"vision_feature_select_strategy": "most"},
            r"config\.json: vision_feature_select_strategy is 'most'",
        ),
        ({"image_grid_pinpoints": [[28, 57]]}, r"export: model\.data\.image_grid_pinpoints has \[28, 57\]"),
    ],
)
def test_a_folder_with_tiles_that_do_not_fit_its_tower_is_refused_by_name(tmp_path, changes, message):
    _, folder = export(tmp_path, aspect_ratio="anyres", pinpoints=PINPOINTS)
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError, match=message):
        llava_hf.read(folder, Options())


def with_pinpoints(config, pinpoints):
    changed = copy.deepcopy(config)
    changed.data.image_grid_pinpoints = pinpoints
    return changed


@pytest.mark.parametrize("system", ["", "Be brief.", None])
def test_an_export_and_its_way_back_have_the_system_prompt_of_training(tmp_path, system):
    _, folder = export(tmp_path, system=system)
    rendered = AutoProcessor.from_pretrained(folder).apply_chat_template(QUESTION, add_generation_prompt=True)
    head = {"": "", "Be brief.": "Be brief. ", None: TEMPLATES["v1"].default_system + " "}[system]
    assert rendered == "<s>" + head + "USER: <image>\nWhat? ASSISTANT:"
    back = llava_hf.read(folder, Options())
    assert (back.config.data.conv_template, back.config.data.system) == ("v1", system)


@pytest.mark.parametrize("template", TEMPLATES.names())
def test_a_rendered_conversation_begins_once_where_training_does(tmp_path, template):
    _, folder = export(tmp_path, template=template)
    processor = AutoProcessor.from_pretrained(folder)
    expected = [1] if TEMPLATES[template].begins_with_bos else []
    rendered = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    turns = [Turn("human", "<image>\nWhat?"), Turn("gpt", None)]
    bos = "<s>" * len(expected)
    assert rendered == bos + "".join(segment.text for segment in render(TEMPLATES[template], turns))
    image = Image.new("RGB", (28, 28))
    content = [{"type": "image", "image": image}, *QUESTION[0]["content"][1:]]
    question = [{"role": "user", "content": "What?"}]
    for encoded in (
        processor(text=rendered, images=image),
        processor.tokenizer.apply_chat_template([question], tokenize=True, return_dict=True),
        processor.tokenizer([processor.tokenizer.apply_chat_template(question, tokenize=False)]),
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        ),
    ):
        (ids,) = encoded["input_ids"]
        assert ids[: len(expected)] == expected
        assert ids.count(1) == len(expected)


def test_every_token_that_ends_an_answer_is_in_the_generation_config(tmp_path, monkeypatch):
    ends_with_filler = replace(TEMPLATES["chatml"], end="filler31", special_tokens=("filler31",))
    monkeypatch.setitem(TEMPLATES._members, "chatml", ends_with_filler)
    _, folder = export(tmp_path, template="chatml")
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ends == [tokens.token_to_id("</s>"), tokens.token_to_id("filler31")]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("select_layer", [-1, -3, 1])
def test_select_layers_are_proven(tmp_path, kind, select_layer):
    model, folder = export(tmp_path, kind=kind, select_layer=select_layer)
    prove_llava(model, folder)


def test_keys_are_canonical_and_config_has_both_spellings(tmp_path):
    model, folder = export(tmp_path, family="llama3")
    names = set(FolderWeights(folder))
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.bias" in names
    assert "vision_tower.vision_model.pre_layrnorm.weight" in names
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 500000.0
    assert text["rope_scaling"]["factor"] == 8.0
    assert config["torch_dtype"] == "float32"
    assert config["image_token_index"] == 133
    assert text["vocab_size"] == 134
    for file in ("processor_config.json", "preprocessor_config.json", "special_tokens_map.json"):
        assert (folder / file).is_file()
    template = (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "chat_template.json").read_text())["chat_template"] == template
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template


def test_pixels_that_transformers_cannot_make_are_not_exported(tmp_path):
    with pytest.raises(
        CheckpointError, match="image_aspect_ratio=pad_right_bottom, which no image processor"
    ):
        export(tmp_path, aspect_ratio="pad_right_bottom")


def test_bf16_stays_bf16(tmp_path):
    _, folder = export(tmp_path, dtype=torch.bfloat16)
    weights = FolderWeights(folder)
    assert {weights[name].dtype for name in weights} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


@torch.no_grad()
def test_a_model_that_would_answer_with_the_image_token_is_still_compared(tmp_path):
    _, folder = export(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    image_id = model.config.image_token_index
    ids = torch.tensor([[1, *[image_id] * 16, 7, 8]])
    sample = ParityInput(ids, torch.randn(1, 3, 28, 28), image_id)
    hidden = model.model(input_ids=ids, pixel_values=sample.pixel_values).last_hidden_state
    model.lm_head.weight[image_id] = hidden[0, -1]
    (answered,) = greedy_outputs(model, [sample])
    assert answered.sample.input_ids[0, :19].tolist() == ids[0].tolist()
    assert image_id not in answered.sample.input_ids[0, 19:]
