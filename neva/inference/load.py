"""A trained model, ready to answer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerFast

from neva.config.language import language_config_of
from neva.config.layout import division_problems
from neva.config.paths import model_source
from neva.config.peft import has_adapters, lora_of
from neva.config.tower import vision_config_of
from neva.data.build import build_encoder
from neva.data.encode import ConversationEncoder
from neva.data.media.reader import MediaReader, build_media_reader
from neva.data.tokenizer import from_folder
from neva.distributed.groups import ParallelSizes, pipeline_stages
from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.formats.nemo_header import is_nemo
from neva.inference.hugging_face import AnyDecoder, decoder_of
from neva.inference.trained import open_trained
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from neva.model.quantised import quantise
from neva.precision import precision_named, set_matmul_precision

SINGLE = ParallelSizes()
"""One process holds all of the model."""


@dataclass(frozen=True)
class Assistant:
    """A model with everything that turns a question and its images into ids and back."""

    model: NevaModel
    decoder: AnyDecoder
    model_cfg: DictConfig
    tokenizer: PreTrainedTokenizerFast
    encoder: ConversationEncoder
    media: MediaReader
    device: torch.device

    def text(self, ids: list[int]) -> str:
        """Returns the text of ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def whole_text(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def load_configured(cfg: DictConfig, device: torch.device) -> Assistant:
    """Returns the model that an inference configuration names."""
    set_matmul_precision(cfg.trainer.precision)
    try:
        return load_assistant(
            model_source(cfg),
            device,
            precision_named(cfg.trainer.precision).dtype,
            cfg.base_model_file,
            cfg.vision_encoder_path,
            cfg.tokenizer_type,
            ParallelSizes(cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size),
            cfg.hparams_file,
            cfg.use_ema,
            cfg.inference.quantization,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_assistant(
    neva_model_file: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    base_model_file: str | None,
    vision_encoder_path: str | None,
    tokenizer_type: str | None,
    layout: ParallelSizes = SINGLE,
    hparams_file: str | None = None,
    use_ema: bool = False,
    packing: str | None = None,
) -> Assistant:
    """Loads a trained model and the frozen parts that it refers to.

    Args:
        neva_model_file: the `.nemo`, the folder of an extracted one, or that of a training checkpoint.
        device, dtype: of the model.
        base_model_file: where to read a language model that the `.nemo` does not hold; None: where it says.
        vision_encoder_path: the same for the tower.
        tokenizer_type: folder of another tokenizer; None: the `.nemo`'s own.
        layout: that of Megatron's groups; this rank holds its stage and its shards.
        hparams_file: configuration of the run that wrote a checkpoint; None: that of its run folder.
        use_ema: of a checkpoint, the moving average of the weights.
        packing: how the matrices of the language model are packed, `nf4` or `int8`; None: as they were in training.

    Raises:
        CheckpointError: a part is neither in the `.nemo` nor where it should be.
        ConfigError: the model cannot be divided so.
    """
    trained = open_trained(neva_model_file, hparams_file, use_ema)
    model_cfg = copy.deepcopy(trained.config)
    OmegaConf.set_struct(model_cfg, False)
    for key, path in (("llm", base_model_file), ("vision_encoder", vision_encoder_path)):
        if path is not None:
            model_cfg.mm_cfg[key].from_pretrained = path
    if base_model_file is not None and has_adapters(model_cfg) and model_cfg.restore_from_path is not None:
        # the `.nemo` beside which they were trained, where it is now, or the folder of the language model alone
        model_cfg.restore_from_path = base_model_file if is_nemo(base_model_file) else None
    tokenizer = trained.tokenizer() if tokenizer_type is None else from_folder(Path(tokenizer_type))
    vision = vision_config_of(model_cfg)
    model = _stage(model_cfg, vision, dtype, layout)
    trained.fill(model, model_cfg)
    if (kind := _packing(model_cfg, packing)) is not None:
        quantise(model, kind)
    model.to(device).eval().requires_grad_(False)
    return Assistant(
        model=model,
        decoder=decoder_of(model),
        model_cfg=model_cfg,
        tokenizer=tokenizer,
        encoder=build_encoder(model_cfg, tokenizer),
        media=build_media_reader(model_cfg, vision, trained.image_processor(model_cfg)),
        device=device,
    )


def _packing(model_cfg: DictConfig, wanted: str | None) -> str | None:
    """Returns how matrices are packed: as beside adapters in training, else as is wanted."""
    lora = lora_of(model_cfg)
    trained = None if lora is None else lora.packing
    if trained is not None and wanted not in (None, trained):
        raise ConfigError(
            f"inference.quantization={wanted}, but the adapters were trained beside matrices in {trained}: leave "
            "the key out, or merge the adapters first (neva convert --merge)"
        )
    return trained or wanted


def _stage(
    model_cfg: DictConfig, vision: VisionConfig, dtype: torch.dtype, layout: ParallelSizes
) -> NevaModel:
    """Builds what this rank holds of the model."""
    if problems := list(division_problems(model_cfg, layout.tensor, layout.pipeline)):
        raise ConfigError("; ".join(problems))
    model_cfg.tensor_model_parallel_size = layout.tensor  # the vocabulary is padded for it
    language = language_config_of(model_cfg)
    config = transformer_config(
        language,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
    )
    (stage,) = pipeline_stages()
    adapter_type = model_cfg.mm_cfg.mm_mlp_adapter_type
    return build_model(vision, language, adapter_type, config, stage.is_first, stage.is_last)
