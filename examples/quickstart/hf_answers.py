"""transformers answers questions from an exported folder; run as a process of its own.

`python examples/quickstart/hf_answers.py FOLDER QUESTIONS IMAGES COUNT OUTPUT` uses nothing of neva: the model, the
processor and the chat template are those of FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BATCH_SIZE = 50
NEW_TOKENS = 16


def main(arguments: list[str]) -> None:
    """Writes to OUTPUT, as a JSON list, the generated answers to the first COUNT lines of QUESTIONS."""
    folder, questions, images, count, output = arguments
    lines = Path(questions).read_text(encoding="utf-8").splitlines()[: int(count)]
    rows = [json.loads(line) for line in lines]
    Path(output).write_text(json.dumps(answers(folder, rows, Path(images))) + "\n", encoding="utf-8")


def answers(folder: str, rows: list[dict[str, Any]], images: Path) -> list[str]:
    """Returns the greedy answer to each row (`prompt`, `image`), in batches padded on the left."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    texts: list[str] = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        prompts = [processor.apply_chat_template(chat(row), add_generation_prompt=True) for row in batch]
        pictures = [Image.open(images / row["image"]).convert("RGB") for row in batch]
        inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row as the messages that a chat template takes; the template places the image itself."""
    question = row["prompt"].removeprefix("<image>\n")
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


if __name__ == "__main__":
    main(sys.argv[1:])
