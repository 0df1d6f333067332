"""The proof of a folder in haotian-liu/LLaVA's layout, whose own package runs on transformers of 2023 only.

Its tensors are read into transformers' `LlavaForConditionalGeneration` under the names that transformers' own
conversion script gives them (`models/llava/convert_llava_weights_to_hf.py`), not through our table.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip import CLIPVisionModel

from neva.convert.lazy_model import LazyModel
from neva.convert.parity.figures import ParityError, configuration_differences
from neva.convert.parity.proof import (
    QUESTIONS,
    Sample,
    answers,
    llava_logits,
    parity_images,
    tokenizer_differences,
    write_parity,
)
from neva.families.connector import connector_named
from neva.families.language import language_prefixes
from neva.families.media_tokens import tokens_per_image
from neva.families.naming import LLAVA_ORIGINAL
from neva.families.vision import stored_tower, vision_config_from_hf
from neva.formats.hf_folder import FolderWeights, read_config, write_json


def prove_llava_original(model: LazyModel, folder: Path) -> None:
    """Proves a folder in the original layout and writes `parity.json`.

    Its tensors are read into transformers' `LlavaForConditionalGeneration`, the tower from where
    `mm_vision_tower` points unless it lies among the weights.
    """
    config = read_config(folder)
    with model.tokenizer_dir() as tokenizer_dir:
        samples = _original_samples(model, tokenizer_dir)
        differences = tokenizer_differences(folder, tokenizer_dir, PreTrainedTokenizerFast)
    tower = folder / "vision_tower" if config["unfreeze_mm_vision_tower"] else model.tower_reference
    assert tower is not None
    image_id = samples[0].image_token_id
    assert image_id is not None
    answered = answers(_original_model(model, folder, tower, image_id), samples)
    native = llava_logits(model, answered)
    vision = vision_config_from_hf(read_config(tower), config["mm_vision_select_layer"])
    fields = configuration_differences(folder, model.language, None)
    if vision != model.vision:
        fields.append(f"the tower in {tower} is {vision}, the model has {model.vision}")
    write_parity(folder, answered, native, [], differences, [], fields)


def _original_model(model: LazyModel, folder: Path, tower: Path, image_token_id: int) -> Any:
    """transformers' LLaVA with the weights of an original-layout folder, every one of them used."""
    text, layout = read_config(folder), LLAVA_ORIGINAL
    body, head = language_prefixes(model.language, layout)
    prefix = stored_tower(model.vision, layout)
    config = LlavaConfig(
        text_config={**text, "model_type": "llama"},
        vision_config=read_config(tower),
        image_token_index=image_token_id,
        vision_feature_layer=text["mm_vision_select_layer"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    result = LlavaForConditionalGeneration(config).float().eval()
    result.model.multi_modal_projector = connector_named(text["mm_projector_type"]).build(
        text["mm_hidden_size"], text["hidden_size"]
    )
    weights = FolderWeights(folder)
    single = text["mm_projector_type"] == "linear"
    renamed = {}
    for name in weights:
        if name.startswith(layout.projector):
            short = name.removeprefix(layout.projector)
            renamed[f"model.multi_modal_projector.{'0.' if single else ''}{short}"] = weights[name].float()
        elif name.startswith(prefix):
            renamed[f"model.vision_tower.{name.removeprefix(prefix)}"] = weights[name].float()
        elif name.startswith(body):
            renamed[f"model.language_model.{name.removeprefix(body)}"] = weights[name].float()
        else:
            renamed[name] = weights[name].float()
    missing, unexpected = result.load_state_dict(renamed, strict=False)
    missing = [name for name in missing if not (text["tie_word_embeddings"] and name == head)]
    if not text["unfreeze_mm_vision_tower"]:
        stored = CLIPVisionModel.from_pretrained(tower, dtype=torch.float32, local_files_only=True)
        result.model.vision_tower.load_state_dict(stored.state_dict())
        missing = [name for name in missing if not name.startswith("model.vision_tower.")]
    if missing or unexpected:
        raise ParityError(
            f"the export lacks {missing[:5]} or has {unexpected[:5]} beyond what transformers knows"
        )
    return result


def _original_samples(model: LazyModel, tokenizer_dir: Path) -> list[Sample]:
    """A question about each picture, tokenised around the image as LLaVA's `tokenizer_image_token` does."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    pieces = [
        (
            tokenizer.encode("USER: ").ids,
            tokenizer.encode(f"\n{question} ASSISTANT:", add_special_tokens=False).ids,
        )
        for question in QUESTIONS
    ]
    used = {token for piece in pieces for half in piece for token in half}
    image_id = next(number for number in range(model.language.vocab_size) if number not in used)
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "preprocessor_config.json", model.image_processor or {})
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    samples = []
    for (before, after), image in zip(pieces, parity_images(model.vision.image_size), strict=True):
        ids = [*before, *[image_id] * tokens_per_image(model.vision, model.connector), *after]
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        samples.append(Sample(torch.tensor([ids]), pixels, image_id))
    return samples
