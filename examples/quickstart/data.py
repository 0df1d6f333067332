"""easy-VQA as LLaVA data: images of one coloured shape, captions for stage 1, conversations for stage 2, test prompts.

Source: the `easy-vqa` package (https://github.com/vzhou842/easy-VQA, MIT): 4,000 train and 1,000 test images of 64x64.
Nothing of the test images or their questions enters the training files.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import easy_vqa
import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

COLOURS = ("black", "gray", "red", "blue", "green", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
DONE = "README.txt"


@dataclass(frozen=True)
class Question:
    """One question about an image with its answer, a single word."""

    text: str
    answer: str
    image: int


def questions(split: Literal["train", "test"]) -> list[Question]:
    """Returns all questions of a split in the package's order."""
    rows = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    return [Question(*row) for row in zip(*rows, strict=True)]


def image_paths(split: Literal["train", "test"]) -> dict[int, str]:
    """Returns the package's image files by image number."""
    return easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()


def write_data(folder: Path, copies: int, questions_per_conversation: int, seed: int) -> None:
    """Writes the quickstart's data set; a folder that is complete is left as it is.

    Args:
        folder: gets `images/`, `pretrain.json`, `finetune.json`, `test.jsonl` and `tokenizer/`.
        copies: of each training image: itself and `copies - 1` that are flipped, transposed and shifted.
        questions_per_conversation: drawn anew for each copy.
        seed: of all draws.
    """
    if (folder / DONE).exists():
        return
    draw = random.Random(seed)
    asked = defaultdict(list)
    for question in questions("train"):
        asked[question.image].append(question)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    captions, conversations = [], []
    for number, path in sorted(image_paths("train").items()):
        caption = describe(asked[number])
        for copy, pixels in enumerate(
            variants(np.asarray(Image.open(path).convert("RGB")), caption, copies, draw)
        ):
            name = f"train_{number}_{copy}.png"
            Image.fromarray(pixels).save(folder / "images" / name, compress_level=1)
            chosen = draw.sample(asked[number], min(questions_per_conversation, len(asked[number])))
            conversations.append(record(name, [(question.text, question.answer) for question in chosen]))
            if caption is not None:
                # either word comes first in half of the captions: both are learnt from the image, none from the other
                words = caption if copy % 2 == 0 else ", ".join(reversed(caption.split()))
                captions.append(record(name, [("Describe the image.", words)]))
    write_json(folder / "pretrain.json", captions)
    write_json(folder / "finetune.json", conversations)
    write_test(folder)
    write_tokenizer(folder / "tokenizer", [question for row in asked.values() for question in row])
    (folder / DONE).write_text(
        f"easy-VQA in LLaVA format: {len(captions)} captions, {len(conversations)} conversations\n"
    )


def describe(asked: Sequence[Question]) -> str | None:
    """Returns a caption such as `teal circle` from an image's own questions, or None where they do not tell both."""
    known: dict[str, str] = {}
    for question in asked:
        for kind, words in (("colour", COLOURS), ("shape", SHAPES)):
            named = [word for word in words if word in question.text.rstrip("?").split()]
            is_there = (question.answer == "yes") != is_negated(question.text)
            if question.answer in words:
                known[kind] = question.answer
            elif named and (is_there if question.answer in ("yes", "no") else True):
                known[kind] = named[0]
    return f"{known['colour']} {known['shape']}" if len(known) == 2 else None


def is_negated(question: str) -> bool:
    """Whether a question asks for absence (`is there not a …`, `is no …`)."""
    return bool({"no", "not"} & set(question.split()))


def variants(
    pixels: np.ndarray, caption: str | None, copies: int, draw: random.Random
) -> Iterator[np.ndarray]:
    """Yields an image [64, 64, 3] and changed copies of it whose questions keep their answers.

    Copies are mirrored, transposed (not triangles, which always stand upright) and moved with the shape inside.
    The background is one colour, so moving wraps around unseen.
    """
    yield pixels
    for _ in range(copies - 1):
        changed = pixels[:, ::-1] if draw.random() < 0.5 else pixels
        if caption is not None and "triangle" not in caption and draw.random() < 0.5:
            changed = changed.transpose(1, 0, 2)
        is_shape = (np.abs(changed.astype(int) - changed[0, 0]) > 2).any(axis=-1)
        shifts = []
        for axis in (0, 1):
            inside = np.flatnonzero(is_shape.any(axis=1 - axis))
            shifts.append(draw.randint(-inside[0], changed.shape[axis] - 1 - inside[-1]))
        yield np.roll(changed, shifts, axis=(0, 1))


def record(image: str, turns: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Returns a LLaVA record: one image, some questions and answers."""
    conversation = []
    for number, (question, answer) in enumerate(turns):
        text = f"<image>\n{question}" if number == 0 else question
        conversation += [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"id": image.removesuffix(".png"), "image": image, "conversations": conversation}


def write_test(folder: Path) -> None:
    """Writes every test question as a prompt of its own; `truth` is carried along and never shown to the model."""
    for number, path in image_paths("test").items():
        Image.open(path).convert("RGB").save(folder / "images" / f"test_{number}.png", compress_level=1)
    rows = [
        {
            "prompt": f"<image>\n{row.text}",
            "image": f"test_{row.image}.png",
            "truth": row.answer,
        }
        for row in questions("test")
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tokenizer(folder: Path, asked: Sequence[Question]) -> None:
    """Writes a word-level tokenizer over the training questions in Hugging Face's format."""
    word = r"[A-Za-z]+|[^\sA-Za-z]|\n"
    splitter = pre_tokenizers.Split(Regex(word), behavior="removed", invert=True)
    texts = sorted({text for row in asked for text in (row.text, row.answer)})
    texts += [*COLOURS, *SHAPES, "USER: ASSISTANT:,\n"]
    words = dict.fromkeys(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def write_json(path: Path, content: object) -> None:
    """Writes JSON under a temporary name and renames it."""
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)
