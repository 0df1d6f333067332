"""Special tokens in sentencepiece `.model` files, by NeMo's command line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from neva.formats.sentencepiece import add_to_sentencepiece

ROOT = Path(__file__).parents[2]
TOKENS = [f"<extra_id_{number}>" for number in range(8)]


@pytest.fixture
def model(tmp_path):
    """A small model as LLaMA's is: BPE with bytes as a fallback."""
    content = io.BytesIO()
    text = ["a small model of words about words", "what colour is the shape of the model"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=content,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(content.getvalue())
    return tmp_path / "tokenizer.model"


def load(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_command_line_adds_tokens_that_are_found_in_text(model, tmp_path):
    script = ROOT / "scripts" / "tokenizers" / "add_special_tokens_to_sentencepiece.py"
    output = tmp_path / "out.model"
    command = [sys.executable, str(script), "--input_file", str(model), "--output_file", str(output)]
    command += ["--is_userdefined", "--tokens", *TOKENS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after = load(model), load(output)
    size = before.vocab_size()
    assert done.stdout.splitlines() == [f"{token} {size + n}" for n, token in enumerate(TOKENS)]
    assert after.vocab_size() == size + 8
    assert after.encode("the shape <extra_id_3>")[-1] == size + 3
    assert after.encode("the shape of words") == before.encode("the shape of words")


def test_control_tokens_cannot_be_forged_by_text(model, tmp_path):
    (number,) = add_to_sentencepiece(model, tmp_path / "out.model", ["<image>"], user_defined=False)
    after = load(tmp_path / "out.model")
    assert after.piece_to_id("<image>") == number
    assert after.is_control(number)
    assert number not in after.encode("an <image> here")


def test_refused(model, tmp_path):
    with pytest.raises(ValueError, match="has the token '<s>' already"):
        add_to_sentencepiece(model, tmp_path / "out.model", ["<s>"], user_defined=True)
    with pytest.raises(ValueError, match="given twice"):
        add_to_sentencepiece(model, tmp_path / "out.model", ["<a>", "<a>"], user_defined=True)
    with pytest.raises(ValueError, match="exists"):
        add_to_sentencepiece(model, model, ["<a>"], user_defined=True)
    (tmp_path / "text.model").write_text("hello")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        add_to_sentencepiece(tmp_path / "text.model", tmp_path / "out.model", ["<a>"], user_defined=True)
    assert not (tmp_path / "out.model").exists()
