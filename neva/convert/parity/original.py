"""The proof of a folder in haotian-liu/LLaVA's layout, whose own package runs on transformers of 2023 only.

Its tensors are read into transformers' `LlavaForConditionalGeneration` under the names that transformers' own
conversion script gives them (`models/llava/convert_llava_weights_to_hf.py`), not through our table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip import CLIPVisionModel

from neva.convert.lazy_model import LazyModel
from neva.convert.parity.figures import ParityError, configuration_differences, write_parity
from neva.convert.parity.native import native_logits
from neva.convert.parity.reference import greedy_outputs, tokenizer_differences
from neva.convert.parity.samples import original_inputs
from neva.families.connector import connector_named
from neva.families.language import language_prefixes
from neva.families.naming import LLAVA_ORIGINAL
from neva.families.vision_reading import keeping_leading_tokens, vision_config_from_hf
from neva.families.vision_table import stored_tower
from neva.formats.hf_files import read_config
from neva.formats.hf_folder import FolderWeights


def prove_llava_original(model: LazyModel, folder: Path) -> None:
    """Proves a folder in the original layout and writes `parity.json`.

    The tower is read from where `mm_vision_tower` points, unless it lies among the weights.

    Raises:
        ParityError: a figure is not as it must be.
    """
    config = read_config(folder)
    with model.tokenizer_dir() as tokenizer_dir:
        inputs = original_inputs(model, tokenizer_dir)
        tokenizer = tokenizer_differences(folder, tokenizer_dir, PreTrainedTokenizerFast)
    tower = folder / "vision_tower" if config["unfreeze_mm_vision_tower"] else model.tower_reference
    assert tower is not None
    image_id = inputs[0].image_token_id
    assert image_id is not None
    answered = greedy_outputs(_original_model(model, folder, tower, image_id), inputs)
    native = native_logits(model, answered)
    vision = vision_config_from_hf(read_config(tower), config["mm_vision_select_layer"])
    if config["mm_vision_select_feature"] == "cls_patch":
        vision = keeping_leading_tokens(vision)
    configuration = configuration_differences(folder, model.language, None)
    if vision != model.vision:
        configuration.append(f"the tower in {tower} is {vision}, the model has {model.vision}")
    write_parity(folder, answered, native, {"configuration": configuration, "tokenizer": tokenizer})


def _original_model(model: LazyModel, folder: Path, tower: Path, image_token_id: int) -> Any:
    """Returns transformers' LLaVA with the weights of an original-layout folder, every one of them used."""
    text, layout = read_config(folder), LLAVA_ORIGINAL
    body, head = language_prefixes(model.language, layout)
    prefix = stored_tower(model.vision, layout)
    config = LlavaConfig(
        text_config={**text, "model_type": "llama"},
        vision_config=read_config(tower),
        image_token_index=image_token_id,
        vision_feature_layer=text["mm_vision_select_layer"],
        vision_feature_select_strategy="default" if model.vision.class_token_length else "full",
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
