"""Tokenizers from local files, against sentencepiece itself."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import PreTrainedTokenizerFast

from neva.data.tokenizer import from_sentencepiece, load_tokenizer
from neva.errors import DataError
from neva.formats.vocabulary import tokenizer_size
from tests.conftest import shared_data
from tests.data import tokenizers


def huggingface(path: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(OmegaConf.create({"library": "huggingface", "type": str(path)}))


def real_texts() -> list[str]:
    """Every text of the real prompt and conversation files, and some that are hard on spaces and bytes."""
    prompts = json.loads(shared_data("prompts", "input_prompts.json").read_text())
    texts = [prompt["prompt"] for prompt in prompts]
    for name in ("mllm_demo.json", "mllm_video_demo.json"):
        for record in json.loads(shared_data("demo", name).read_text()):
            texts += [turn["content"] for turn in record["messages"]]
    words = " ".join(texts).split()
    texts += ["  ".join(words[start : start + 9]) for start in range(0, len(words), 7)]
    return [
        *texts,
        "",
        " ",
        "   ",
        " a  b   c ",
        "tab\tand\nlines\n\n",
        "été ½ ﬁ Ａ 🙂👩‍👩‍👧",
        "</ s> < s>",
        "1234567890",
    ]


@pytest.mark.parametrize("library", ["huggingface", "sentencepiece"])
def test_ids_are_those_of_sentencepiece(library: str) -> None:
    folder = shared_data("tokenizer", "vicuna")
    original = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(
        OmegaConf.create({"library": library, "type": str(folder), "model": str(folder / "tokenizer.model")})
    )
    texts = real_texts()
    assert len(texts) >= 100
    for text in texts:
        assert tokenizer.encode(text, add_special_tokens=False) == original.encode(text), text


def test_both_libraries_agree_around_special_tokens() -> None:
    folder = shared_data("tokenizer", "vicuna")
    one = huggingface(folder)
    other = load_tokenizer(
        OmegaConf.create({"library": "sentencepiece", "model": str(folder / "tokenizer.model")})
    )
    text = "A </s>USER: x</s> y\n</s>"
    ids = [319, 29871, 2, 3148, 1001, 29901, 921, 2, 29871, 343, 13, 2]
    assert one.encode(text, add_special_tokens=False) == other.encode(text, add_special_tokens=False) == ids
    assert len(one) == len(other) == 32000
    for tokenizer in (one, other):
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
        assert tokenizer.pad_token_id == 0
        assert tokenizer.decode(tokenizer.encode("Hello  world, été 🙂"), skip_special_tokens=True) == (
            "Hello  world, été 🙂"
        )


def test_a_bare_tokenizer_json_gives_its_special_tokens(tmp_path: Path) -> None:
    tokenizers.llama_like(tmp_path)
    assert not (tmp_path / "tokenizer_config.json").exists()
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = huggingface(path)
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_a_tokenizer_json_is_taken_word_for_word_whatever_class_its_config_names(tmp_path: Path) -> None:
    """transformers' LLaMA class would leave out the space after a special token."""
    expected = tokenizers.llama_like(tmp_path).encode("a</s>b", add_special_tokens=False)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": {"content": "</s>"}})
    )
    tokenizer = huggingface(tmp_path)
    assert tokenizer.encode("a</s>b", add_special_tokens=False) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "</s>")


def test_truncation_and_padding_left_in_a_tokenizer_json_are_dropped(tmp_path: Path) -> None:
    tokenizer = tokenizers.llama_like(tmp_path)
    text = "USER: What is in the picture?"
    expected = tokenizer.encode(text, add_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert huggingface(tmp_path).encode(text, add_special_tokens=False) == expected
    assert len(huggingface(tmp_path)) == len(tokenizer)


def test_files_that_transformers_can_convert_are_read(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data("tokenizer", "clip", name), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    tokenizer = huggingface(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a photo", add_special_tokens=False)) == [
        "a</w>",
        "photo</w>",
    ]


def test_a_folder_with_only_a_tokenizer_model_is_read(tmp_path: Path) -> None:
    shutil.copy(shared_data("tokenizer", "vicuna", "tokenizer.model"), tmp_path)
    assert huggingface(tmp_path).encode("Hello", add_special_tokens=False) == [15043]


def test_a_nemo_gives_the_tokenizer_that_it_holds(tmp_path: Path) -> None:
    expected = tokenizers.chatml(tmp_path / "extracted" / "tokenizer")
    (tmp_path / "extracted" / "model_config.yaml").write_text("vocab_size: 300")
    for name in ("file.nemo", "bare.nemo"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(tmp_path / "extracted" / "model_config.yaml", "./model_config.yaml")
            if name == "file.nemo":
                archive.add(tmp_path / "extracted" / "tokenizer", "./tokenizer")
    for source in (tmp_path / "file.nemo", tmp_path / "extracted"):
        found = huggingface(source)
        assert found.get_vocab() == expected.get_vocab()
        assert (found.eos_token, found.pad_token) == (expected.eos_token, expected.pad_token)
        assert tokenizer_size(str(source)) == len(expected)
    with pytest.raises(ValueError, match=r"bare\.nemo holds no tokenizer\.json"):
        huggingface(tmp_path / "bare.nemo")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.tokenizer\.type: no folder or tokenizer\.json at .*absent"):
        huggingface(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json or tokenizer\.model"):
        huggingface(tmp_path)
    with pytest.raises(ValueError, match=r"model\.tokenizer\.model: no file at"):
        load_tokenizer(OmegaConf.create({"library": "sentencepiece", "model": "absent.model"}))
    with pytest.raises(ValueError, match=r"library is 'megatron'; neva reads huggingface and sentencepiece"):
        load_tokenizer(OmegaConf.create({"library": "megatron"}))
    tokenizers.chatml(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"names no end-of-sequence token; put eos_token into"):
        huggingface(tmp_path)


def test_a_nemo_whose_tokenizer_leads_outside_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    tokenizers.chatml(tmp_path / "tokenizer")
    with tarfile.open(tmp_path / "evil.nemo", "w") as archive:
        archive.add(tmp_path / "tokenizer", "tokenizer")
        archive.add(tmp_path / "tokenizer" / "tokenizer.json", f"tokenizer/../{tmp_path.name}.stray")
    with pytest.raises(ValueError, match=r"leads outside the archive; it is refused"):
        huggingface(tmp_path / "evil.nemo")
    assert not list(Path(gettempdir()).glob(f"{tmp_path.name}.stray"))


def chatml_vicuna(folder: Path, config: dict[str, Any], added: dict[str, int] | None = None) -> Path:
    """Vicuna's tokenizer.model with files that other trainings put beside it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(shared_data("tokenizer", "vicuna", "tokenizer.model"), folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


ENDS = {"<|im_end|>": 32000, "<|im_start|>": 32001}


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"eos_token": "<|im_end|>"}, ENDS),
        (
            {
                "eos_token": {"content": "<|im_end|>", "lstrip": False},
                "added_tokens_decoder": {
                    str(number): {"content": token, "special": True} for token, number in ENDS.items()
                },
            },
            None,
        ),
    ],
)
def test_files_beside_a_tokenizer_model_add_tokens_and_name_roles(
    tmp_path: Path, config: dict[str, Any], added: dict[str, int] | None
) -> None:
    tokenizer = huggingface(chatml_vicuna(tmp_path, config, added))
    assert (tokenizer.eos_token_id, len(tokenizer), tokenizer.bos_token_id) == (32000, 32002, 1)
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>", add_special_tokens=False)
    assert ids[0] == 32001 and ids[-1] == 32000 and not {32000, 32001} & set(ids[1:-1])


def test_roles_come_from_the_special_tokens_map_and_an_empty_one_is_none(tmp_path: Path) -> None:
    chatml_vicuna(tmp_path, {"bos_token": "", "pad_token": None}, ENDS)
    roles = {"eos_token": {"content": "<|im_end|>"}, "bos_token": ""}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    tokenizer = huggingface(tmp_path)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("<|im_end|>", "<s>", "<unk>")


def test_an_added_token_with_another_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="'<a>' should have id 32007, but behind tokenizer.model it gets 32000"
    ):
        huggingface(chatml_vicuna(tmp_path, {}, {"<a>": 32007}))


def test_empty_names_in_a_tokenizer_config_are_none(tmp_path: Path) -> None:
    tokenizers.llama_like(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, "eos_token": "</s>", "bos_token": "", "pad_token": ""}))
    tokenizer = huggingface(tmp_path)
    assert tokenizer.bos_token is None and tokenizer.pad_token in ("<unk>", "</s>")


def test_any_harm_to_a_sentencepiece_model_is_a_tokenizer_or_one_sentence(tmp_path: Path) -> None:
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(
            [f"the cat sat on the mat {number} and a zebra slept" for number in range(99)]
        ),
        model_writer=written,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    content, path = written.getvalue(), tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert len(from_sentencepiece(path)) == 290

    @settings(max_examples=150)
    @given(position=st.integers(0, len(content) - 1), flipped=st.integers(0, 255))
    def check(position: int, flipped: int) -> None:
        path.write_bytes(
            content[:position] + (bytes([flipped]) + content[position + 1 :] if flipped else b"")
        )
        try:
            from_sentencepiece(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)

    check()
