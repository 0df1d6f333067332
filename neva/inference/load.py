"""A `.nemo` as a model that is ready to answer."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import BaseImageProcessor, PreTrainedTokenizerFast

from neva.config.model_config import language_config_of, vision_config_of
from neva.config.stored import check_stored
from neva.data.dataset import build_encoder
from neva.data.encode import ConversationEncoder
from neva.data.media.processor import build_image_processor, load_image_processor
from neva.data.media.reader import MediaReader, build_media_reader
from neva.data.tokenizer import from_folder
from neva.errors import CheckpointError, ConfigError
from neva.formats.nemo import NemoFile, open_nemo
from neva.formats.nemo_header import IMAGE_PROCESSOR_FILE
from neva.inference.decoder import Decoder
from neva.model.build import build_model
from neva.model.language import transformer_config
from neva.model.llava import NevaModel
from neva.precision import precision_named, set_matmul_precision
from neva.weights.load import load_parts
from neva.weights.resolve import resolve_nemo


@dataclass(frozen=True)
class Assistant:
    """A model with everything that turns a question and its images into ids and back."""

    model: NevaModel
    decoder: Decoder
    model_cfg: DictConfig
    tokenizer: PreTrainedTokenizerFast
    encoder: ConversationEncoder
    media: MediaReader
    device: torch.device


def load_configured(cfg: DictConfig, device: torch.device) -> Assistant:
    """Returns the model that an inference configuration names."""
    set_matmul_precision(cfg.trainer.precision)
    try:
        return load_assistant(
            cfg.neva_model_file,
            device,
            precision_named(cfg.trainer.precision).dtype,
            cfg.base_model_file,
            cfg.vision_encoder_path,
            cfg.tokenizer_type,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_assistant(
    neva_model_file: str,
    device: torch.device,
    dtype: torch.dtype,
    base_model_file: str | None,
    vision_encoder_path: str | None,
    tokenizer_type: str | None,
) -> Assistant:
    """Loads a `.nemo` (or the folder of an extracted one) and the frozen parts that it refers to.

    Args:
        neva_model_file: the `.nemo`.
        device, dtype: of the model.
        base_model_file: where to read a language model that the `.nemo` does not hold; None: where it says.
        vision_encoder_path: the same for the tower.
        tokenizer_type: folder of another tokenizer; None: the `.nemo`'s own.

    Raises:
        CheckpointError: a part is neither in the `.nemo` nor where it should be.
    """
    nemo = open_nemo(neva_model_file)
    if "mm_cfg" not in nemo.config:
        raise CheckpointError(
            f"{neva_model_file} holds a language model alone; expected what a LLaVA training wrote"
        )
    check_stored(nemo.config, neva_model_file)
    model_cfg = copy.deepcopy(nemo.config)
    OmegaConf.set_struct(model_cfg, False)
    for key, path in (("llm", base_model_file), ("vision_encoder", vision_encoder_path)):
        if path is not None:
            model_cfg.mm_cfg[key].from_pretrained = path
    tokenizer = _tokenizer(nemo, tokenizer_type)
    vision, language = vision_config_of(model_cfg), language_config_of(model_cfg)
    config = transformer_config(
        language,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
    )
    model = build_model(vision, language, model_cfg.mm_cfg.mm_mlp_adapter_type, config)
    _fill(model, nemo, model_cfg)
    model.to(device).eval().requires_grad_(False)
    return Assistant(
        model=model,
        decoder=Decoder(model),
        model_cfg=model_cfg,
        tokenizer=tokenizer,
        encoder=build_encoder(model_cfg, tokenizer),
        media=build_media_reader(model_cfg, vision, _image_processor(nemo, model_cfg)),
        device=device,
    )


def _fill(model: NevaModel, nemo: NemoFile, model_cfg: DictConfig) -> None:
    origins = resolve_nemo(nemo.path, model_cfg.mm_cfg)
    for part, origin in origins.items():
        if origin.path is None:
            raise CheckpointError(f"{nemo.path} holds no {part} and names no folder that has it")
    load_parts(model, origins, language_config_of(model_cfg))


def _tokenizer(nemo: NemoFile, tokenizer_type: str | None) -> PreTrainedTokenizerFast:
    if tokenizer_type is not None:
        return from_folder(Path(tokenizer_type))
    with tempfile.TemporaryDirectory() as folder:
        return from_folder(nemo.extract_tokenizer(folder))


def _image_processor(nemo: NemoFile, model_cfg: DictConfig) -> BaseImageProcessor:
    if nemo.image_processor is None:
        return build_image_processor(model_cfg.mm_cfg.vision_encoder)
    return load_image_processor(nemo.image_processor, f"{IMAGE_PROCESSOR_FILE} of {nemo.path}")
