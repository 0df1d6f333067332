"""Tokenizers as they are published: a tokenizer.model alone, tokens added beside it, roles that are missing."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from neva.commands.convert import main
from neva.data.build import build_encoder
from neva.data.tokenizer import from_folder
from neva.formats.nemo import open_nemo
from neva.templates.template import Turn
from tests.conftest import shared_data
from tests.convert.llava import image_processor
from tests.convert.tiny import SIZES, tower
from tests.data.tokenizers import chatml

pytestmark = pytest.mark.usefixtures("megatron")


def convert(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def eye(tmp_path):
    folder = tmp_path / "eye"
    tower("clip", seed=9).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor("clip", 28)))
    return folder


def text_model(folder, rows=32000):
    """A tiny LLaMA with Vicuna's tokenizer.model and nothing else."""
    sizes = {**SIZES, "vocab_size": rows, "hidden_size": 16, "intermediate_size": 24}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "head_dim": 8}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    shutil.copy(shared_data("tokenizer", "vicuna", "tokenizer.model"), folder)
    return folder


def test_a_tokenizer_model_alone_needs_no_flag_on_any_way(tmp_path, eye):
    """text -> .nemo -> LLaVA folder of either layout -> .nemo -> llava-hf, and the ids of training."""
    text = text_model(tmp_path / "text")
    assert convert(text, tmp_path / "text.nemo") == 0
    original = AutoTokenizer.from_pretrained(shared_data("tokenizer", "vicuna"))
    for source in (text, tmp_path / "text.nemo"):
        tokenizer = from_folder(source)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
        assert tokenizer.encode("What is it?", add_special_tokens=False) == original.encode(
            "What is it?", add_special_tokens=False
        )
    assert convert(text, tmp_path / "llava", "--vision_encoder_path", eye, "--layout", "original") == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "llava" / name).unlink(missing_ok=True)
    assert convert(tmp_path / "llava", tmp_path / "llava.nemo") == 0
    assert convert(tmp_path / "llava.nemo", tmp_path / "hf") == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (exported.bos_token, exported.eos_token, exported.pad_token) == ("<s>", "</s>", "<unk>")
    chat = exported.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=True, return_dict=True)
    assert chat["input_ids"].count(1) == 1 and exported.convert_tokens_to_ids("<image>") == 32000
    assert exported(["a b c", "a"], padding=True)["input_ids"][1][0] == 0
    nemo = open_nemo(tmp_path / "llava.nemo")
    encoder = build_encoder(nemo.config, from_folder(tmp_path / "llava.nemo"))
    ids, labels = encoder.sample([Turn("human", "hi"), Turn("gpt", "yes")], [])
    assert ids[0] == 1 and labels[-1] == 2


def test_added_tokens_keep_their_ids_and_the_image_comes_behind_them(tmp_path, eye):
    text = text_model(tmp_path / "text", rows=32002)
    (text / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 32000, "<|im_start|>": 32001}))
    (text / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "bos_token": ""}))
    assert convert(text, tmp_path / "hf", "--vision_encoder_path", eye, "--conv_template", "chatml") == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["image_token_index"] == 32002
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (exported.eos_token_id, exported.convert_tokens_to_ids("<|im_start|>")) == (32000, 32001)
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 32000 and generation["pad_token_id"] == 0


def test_a_tokenizer_json_without_a_config_gets_its_roles(tmp_path, eye):
    text = text_model(tmp_path / "text")
    backend = from_folder(text).backend_tokenizer
    (text / "tokenizer.model").unlink()
    backend.save(str(text / "tokenizer.json"))
    assert convert(text, tmp_path / "hf", "--vision_encoder_path", eye) == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (exported.bos_token, exported.eos_token, exported.pad_token) == ("<s>", "</s>", "<unk>")


def test_without_an_unknown_token_the_end_is_the_padding(tmp_path, eye):
    text = text_model(tmp_path / "text")
    content = json.loads(from_folder(text).backend_tokenizer.to_str())
    Tokenizer.from_str(json.dumps(content)).save(str(text / "tokenizer.json"))
    (text / "tokenizer.model").unlink()
    (text / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    assert convert(text, tmp_path / "hf", "--vision_encoder_path", eye) == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (exported.pad_token, exported.pad_token_id) == ("</s>", 2)
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["pad_token_id"] == 2


@pytest.mark.parametrize(("layout", "first"), [("llava-hf", []), ("original", [1])])
def test_an_export_puts_nothing_behind_a_prompt(tmp_path, eye, layout, first):
    """As tokenizers that end each text by themselves would; training has an end behind answers alone."""
    text = text_model(tmp_path / "text")
    backend = from_folder(text).backend_tokenizer
    ending = {"single": "$A </s>", "special_tokens": [("</s>", 2)]}
    backend.post_processor = TemplateProcessing(**ending)
    (text / "tokenizer.model").unlink()
    backend.save(str(text / "tokenizer.json"))
    assert convert(text, tmp_path / "llava", "--vision_encoder_path", eye, "--layout", layout) == 0
    exported = Tokenizer.from_file(str(tmp_path / "llava" / "tokenizer.json"))
    assert exported.encode("Hi").ids == first + exported.encode("Hi", add_special_tokens=False).ids


def test_a_tokenizer_without_an_end_is_named(tmp_path, eye, capsys):
    text = text_model(tmp_path / "text")
    backend = from_folder(text).backend_tokenizer
    (text / "tokenizer.model").unlink()
    backend.save(str(text / "tokenizer.json"))
    (text / "tokenizer_config.json").write_text("{}")
    assert convert(text, tmp_path / "hf", "--vision_encoder_path", eye) == 1
    assert "its tokenizer names no eos_token; put it into tokenizer_config.json" in capsys.readouterr().err


def test_a_chat_template_in_a_file_of_its_own_comes_back(tmp_path):
    text = text_model(tmp_path / "text")
    (text / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert convert(text, tmp_path / "text.nemo") == 0
    assert convert(tmp_path / "text.nemo", tmp_path / "again") == 0
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"


def test_special_tokens_as_transformers_5_lists_them_are_written_as_4_reads_them(tmp_path):
    """4.47 to 4.57 want an object under `extra_special_tokens` and fail at a list."""
    text = text_model(tmp_path / "text", rows=32001)
    tokenizer = AutoTokenizer.from_pretrained(shared_data("tokenizer", "vicuna"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"]})
    tokenizer.save_pretrained(text)
    assert json.loads((text / "tokenizer_config.json").read_text())["extra_special_tokens"] == ["<a>"]
    assert convert(text, tmp_path / "text.nemo") == 0
    assert convert(tmp_path / "text.nemo", tmp_path / "again") == 0
    settings = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in settings and settings["additional_special_tokens"] == ["<a>"]
    assert "<a>" in AutoTokenizer.from_pretrained(tmp_path / "again").all_special_tokens


def test_a_tokenizer_of_llama_s_class_is_exported_word_for_word(tmp_path):
    """As Vicuna is published: transformers 5 builds another tokenizer for that class."""
    text = text_model(tmp_path / "text")
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (text / "tokenizer_config.json").write_text(
        json.dumps(roles | {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False})
    )
    assert convert(text, tmp_path / "text.nemo") == 0
    assert convert(tmp_path / "text.nemo", tmp_path / "again") == 0  # with proof
    again, original = AutoTokenizer.from_pretrained(tmp_path / "again"), from_folder(text)
    for words in (" leading", "</s> a</s>b"):
        assert again(words)["input_ids"] == original(words, add_special_tokens=False)["input_ids"]


def test_what_a_tokenizer_json_cut_and_filled_it_cuts_and_fills_no_more(tmp_path):
    text = text_model(tmp_path / "text")
    backend = from_folder(text).backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    backend.save(str(text / "tokenizer.json"))
    assert convert(text, tmp_path / "text.nemo") == 0
    assert convert(tmp_path / "text.nemo", tmp_path / "again") == 0  # with proof
    again = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert (again.truncation, again.padding) == (None, None)


def test_a_vocabulary_with_merges_puts_no_token_first(tmp_path):
    """As GPT-2's, whose class puts none; LLaMA's does, of which there is a tokenizer.model."""
    text = text_model(tmp_path / "text", rows=512)
    (text / "tokenizer.model").unlink()
    chatml(tmp_path / "bytes").backend_tokenizer.model.save(str(text))
    (text / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert convert(text, tmp_path / "text.nemo") == 0
    stored = from_folder(tmp_path / "text.nemo")
    assert stored.bos_token and stored("A")["input_ids"] == stored("A", add_special_tokens=False)["input_ids"]
