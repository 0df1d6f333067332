"""The algorithm of haotian-liu/LLaVA (`train.py`, `mm_utils.py`), written anew and slowly, over sentencepiece itself.

Where `neva` asks once for character positions, this finds the answers in the finished string and measures them by
tokenising prefixes again.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

IGNORE = -100
IMAGE = -200
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Reference:
    """LLaVA-1.5's preprocessing with the LLaMA tokenizer in its `legacy` behaviour."""

    def __init__(self, model_file: Path) -> None:
        self.pieces = SentencePieceProcessor(model_file=str(model_file))

    def tokenize(self, text: str) -> list[int]:
        """With BOS; `<s>`, `</s>` are tokens and each text between two of them is encoded on its own."""
        ids = [1]
        for part in re.split("(</?s>)", text):
            ids += {"<s>": [1], "</s>": [2]}.get(part) or self.pieces.encode(part)
        return ids

    def tokenize_with_images(self, text: str) -> list[int]:
        """One BOS in front, one `IMAGE` between chunks that are encoded each on its own."""
        first, *rest = [self.tokenize(chunk) for chunk in text.split("<image>")]
        ids = first
        for chunk in rest:
            ids = ids + [IMAGE] + chunk[1:]
        return ids

    def v1(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Questions and answers in turn."""
        prompt = SYSTEM + " "
        for number, text in enumerate(texts):
            prompt += f"USER: {text} " if number % 2 == 0 else f"ASSISTANT: {text}</s>"
        return self._masked(prompt, " ASSISTANT: ")

    def llama_2(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Questions and answers in turn, as `conv_llava_llama_2` writes them."""
        prompt = ""
        for number, text in enumerate(texts):
            question = f"<<SYS>>\n{LLAMA_2_SYSTEM}\n<</SYS>>\n\n{text}" if number == 0 else text
            prompt += f"<s>[INST] {question} [/INST]" if number % 2 == 0 else f" {text} </s>"
        return self._masked(prompt.lstrip("<s>"), "[/INST] ")

    def _masked(self, prompt: str, separator: str) -> tuple[list[int], list[int]]:
        """Ids of a whole prompt, and labels up to each separator masked."""
        ids = self.tokenize_with_images(prompt)
        labels = list(ids)
        labels[0] = IGNORE
        position = 1
        for part in prompt.split("</s>"):
            if not part:
                break
            question = part.split(separator)[0] + separator
            # BOS counts for the </s> that was split off; BOS and the lone "▁" behind the separator are not in the text.
            question_length = len(self.tokenize_with_images(question)) - 2
            labels[position : position + question_length] = [IGNORE] * question_length
            position += len(self.tokenize_with_images(part))
        assert position == len(ids)
        return ids, labels

    def plain(self, caption: str) -> tuple[list[int], list[int]]:
        """One image and its caption."""
        ids = self.tokenize_with_images(f"<image>{caption}\n")
        hidden = len(self.tokenize_with_images("<image>"))
        return ids, [IGNORE] * hidden + ids[hidden:]


def expand_images(ids: Sequence[int], labels: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """`count` positions for each image, as LLaVA's model makes them later."""
    pairs = [pair for pair in zip(ids, labels, strict=True) for _ in range(count if pair[0] == IMAGE else 1)]
    return [token for token, _ in pairs], [label for _, label in pairs]
