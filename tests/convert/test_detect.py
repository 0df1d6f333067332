"""What a source holds is decided once, and each target takes only its own flags."""

import json
from pathlib import Path

import pytest

from neva.convert import detect, targets
from neva.convert.options import Options
from neva.errors import CheckpointError, ConfigError
from neva.formats.nemo import write_nemo
from neva.formats.nemo_header import is_nemo, is_nemo1


def folder(path: Path, config: dict) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def nemo(path: Path, config: dict) -> Path:
    write_nemo(path, {"vocab_size": 2, **config}, [], None, None, "test", {})
    return path


def test_kinds_are_told_apart(tmp_path):
    text = folder(tmp_path / "text", {"model_type": "llama"})
    assert detect.detect(text) is detect.TEXT
    assert detect.detect(text, adds_tower=True) is detect.PARTS
    assert detect.detect(nemo(tmp_path / "t.nemo", {})) is detect.TEXT
    assert detect.detect(nemo(tmp_path / "m.nemo", {"mm_cfg": {}})) is detect.NEMO
    llava = detect.detect(folder(tmp_path / "hf", {"model_type": "llava"}))
    assert llava.words == "LLaVA model in llava-hf layout"
    original = detect.detect(folder(tmp_path / "original", {"model_type": "llava", "mm_vision_tower": "x"}))
    assert original.words == "LLaVA model in the original layout"
    with pytest.raises(CheckpointError, match="does not exist"):
        detect.detect(tmp_path / "none")
    with pytest.raises(CheckpointError, match="has no config.json"):
        detect.detect(tmp_path)


def test_a_nemo_is_a_file_of_that_name_or_an_extracted_folder(tmp_path):
    path = nemo(tmp_path / "m.nemo", {})
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    assert is_nemo(path) and is_nemo(str(path))
    assert not is_nemo(other) and not is_nemo(tmp_path) and not is_nemo(tmp_path / "none.nemo")
    assert not is_nemo(None) and not is_nemo("")
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    (extracted / "model_config.yaml").write_text("a: 1")
    assert is_nemo(extracted) and is_nemo1(extracted) and detect.detect(extracted) is detect.NEMO1
    (extracted / "manifest.json").write_text("{}")
    assert is_nemo(extracted) and not is_nemo1(extracted) and not is_nemo1(path)


@pytest.mark.parametrize(
    ("kind", "target", "options", "message"),
    [
        (detect.TEXT, "x", Options(add_tokens=("<a>",)), "--add_tokens extends a language model"),
        (detect.NEMO, "x.nemo", Options(add_tokens=("<a>",)), "--add_tokens extends a language model"),
        (detect.TEXT, "x.nemo", Options(vocab_multiple=64), "--pad_vocab_to pads the vocabulary"),
        (detect.NEMO, "x", Options(vocab_multiple=64, layout="original"), "--pad_vocab_to pads"),
        (detect.TEXT, "x.nemo", Options(add_tokens=("<a>",)), None),
        (detect.PARTS, "x", Options(vocab_multiple=64), None),
    ],
)
def test_a_flag_that_a_target_does_not_take_is_refused(kind, target, options, message):
    form = targets.target_form(kind, Path(target), options)
    if message is None:
        form.refuse_others(options)
        return
    with pytest.raises(ConfigError, match=message):
        form.refuse_others(options)
