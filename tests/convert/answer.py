"""Run by another environment's Python: what its transformers makes of exported folders, as one JSON line each.

Imports nothing of neva. `python answer.py SIZE FOLDER …` with the side of the tower's images in pixels.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer


def processor_of(folder: str, model_type: str) -> Any:
    """The folder's processor; LLaVA-OneVision's without that of videos, which needs torchvision after 4.45."""
    if model_type != "llava_onevision" or transformers.__version__.startswith("4.45"):
        return AutoProcessor.from_pretrained(folder)

    class WithoutVideos(transformers.LlavaOnevisionProcessor):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return type(argument)

    settings = json.loads((Path(folder) / "processor_config.json").read_text())
    settings.pop("processor_class")
    template = (Path(folder) / "chat_template.jinja").read_text()
    parts = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return WithoutVideos(*parts, None, chat_template=template, **settings)


def asked(processor: Any, images: list[Image.Image]) -> Any:
    """A question about images, as the model is given it."""
    # with the space that transformers 5 puts behind an image of Idefics2 where a word follows, and 4 does not
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": " What is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=images[0] if len(images) == 1 else [images], text=prompt, return_tensors="pt")


def answer(folder: str, size: int) -> dict[str, object]:
    """Version, tensors missing or unexpected, sum of pixels, greedy ids and the last position's logits.

    Of a LLaVA-OneVision the logits with two images too, as far as a version shows them as training did.
    """
    model_class = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    model.eval().float()
    processor = processor_of(folder, model.config.model_type)
    pixels = np.random.default_rng(0).integers(0, 255, (size, size * 3 // 2, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    inputs = asked(processor, [image])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].double()
        ids = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        several = []
        if (
            isinstance(processor, transformers.LlavaOnevisionProcessor)
            and "4.45" not in transformers.__version__
        ):
            several = model(**asked(processor, [image, image])).logits[0, -1].double().tolist()
    return {
        "version": transformers.__version__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "pixels": inputs["pixel_values"].double().sum().item(),
        "input_ids": inputs["input_ids"][0].tolist(),
        "ids": ids[0].tolist(),
        "logits": logits.tolist(),
        "several": several,
    }


if __name__ == "__main__":
    for path in sys.argv[2:]:
        sys.stdout.write(json.dumps(answer(path, int(sys.argv[1]))) + "\n")
