"""What a user of transformers makes of a record: shared by the ways to read that `bench/data.py` compares.

Apart from the standard library it needs transformers alone, so that the Python of another environment can run it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE, PATCH = 336, 14


def image_processor() -> CLIPImageProcessorPil:
    """Returns CLIP's, at the size of LLaVA-1.5."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def processor_of(folder: Path) -> LlavaProcessor:
    """Returns LLaVA-1.5's processor with the tokenizer in a folder."""
    return LlavaProcessor(
        image_processor(),
        PreTrainedTokenizerFast.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def tensors_of(processor: LlavaProcessor, record: Mapping[str, Any], image: Image.Image) -> Any:
    """Puts the turns together and calls the processor: `input_ids`, `attention_mask` and `pixel_values`."""
    names = {"human": "USER: ", "gpt": "ASSISTANT: "}
    text = " ".join(names[turn["from"]] + turn["value"] for turn in record["conversations"])
    return processor(images=image.convert("RGB"), text=text, return_tensors="pt")


def processor_time_s() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def fingerprint(pixel_values: Any) -> str:
    """Returns what tells the pixels of two images apart."""
    return hashlib.sha256(pixel_values.contiguous().numpy().tobytes()).hexdigest()
