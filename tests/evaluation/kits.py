"""Questions for a kit, and what transformers answers to them."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

NEW_TOKENS = 5
QUESTIONS = [f"What is {number}?" for number in range(3)]


def asked(folder: Path, truths: list[str], name: str = "mine.jsonl", **more: object) -> Path:
    """Writes a prompt file with answers about the two pictures of `folder`."""
    rows = [
        {"prompt": f"<image>\n{QUESTIONS[number]}", "image": f"{number % 2}.png", "truth": truth, **more}
        for number, truth in enumerate(truths)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def entries(folder: Path, output: str = "out") -> dict[str, dict]:
    """The benchmarks of `results.json`."""
    return json.loads((folder / output / "results.json").read_text())["benchmarks"]


def generated(folder: Path, instruction: str) -> list[str]:
    """What transformers answers to the chat template's rendering, one question at a time."""
    processor = AutoProcessor.from_pretrained(folder / "out/hf")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "out/hf", dtype=torch.float32).eval()
    texts = []
    for number, question in enumerate(QUESTIONS):
        parts = [{"type": "image"}, {"type": "text", "text": question + instruction}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        picture = Image.open(folder / f"{number % 2}.png")
        inputs = processor(images=picture, text=text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts.append(
            processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return texts
