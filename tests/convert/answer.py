"""Run by another environment's Python: what its transformers makes of exported folders, as one JSON line each.

Imports nothing of neva. `python answer.py SIZE FOLDER …` with the side of the tower's images in pixels.
"""

import json
import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor


def answer(folder: str, size: int) -> dict[str, object]:
    """Version, tensors missing or unexpected, sum of pixels, greedy ids and the last position's logits."""
    model_class = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    model.eval().float()
    processor = AutoProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (size, size * 3 // 2, 3), dtype=np.uint8)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.fromarray(pixels), text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].double()
        ids = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return {
        "version": transformers.__version__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "pixels": inputs["pixel_values"].double().sum().item(),
        "input_ids": inputs["input_ids"][0].tolist(),
        "ids": ids[0].tolist(),
        "logits": logits.tolist(),
    }


if __name__ == "__main__":
    for path in sys.argv[2:]:
        sys.stdout.write(json.dumps(answer(path, int(sys.argv[1]))) + "\n")
