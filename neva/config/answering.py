"""Keys of a run that answers prompts, checked together."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from omegaconf import DictConfig

from neva.config.show import as_override


def inference_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields a sentence for each combination of keys of `inference` and layout that does not go."""
    tensor, pipeline = cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size
    if world_size % (tensor * pipeline):
        yield (
            f"trainer.devices={cfg.trainer.devices} x trainer.num_nodes={cfg.trainer.num_nodes} processes cannot be "
            f"divided into copies of the model on tensor_model_parallel_size={tensor} x "
            f"pipeline_model_parallel_size={pipeline} = {tensor * pipeline}: change one of them"
        )
    is_given = [
        cfg.neva_model_file is not None,
        cfg.checkpoint_dir is not None,
        cfg.checkpoint_name is not None,
    ]
    if is_given not in ([True, False, False], [False, True, True]):
        yield (
            f"neva_model_file={as_override(cfg.neva_model_file)}, checkpoint_dir={as_override(cfg.checkpoint_dir)} and "
            f"checkpoint_name={as_override(cfg.checkpoint_name)}: give either the first or the other two"
        )
    generation = cfg.inference
    if generation.quantization is not None:
        if tensor * pipeline > 1:
            yield (
                f"inference.quantization={generation.quantization} with tensor_model_parallel_size={tensor} and "
                f"pipeline_model_parallel_size={pipeline}: a packed model lies on one device, and copies share the "
                "prompts; set both to 1, or leave inference.quantization out"
            )
        if find_spec("bitsandbytes") is None:
            yield (
                f"inference.quantization={generation.quantization} needs bitsandbytes: pip install 'neva[qlora]', or "
                "leave the key out"
            )
    if "" in generation.end_strings:
        yield "inference.end_strings has an empty string, in front of which every answer would end: leave it out"
    if generation.min_tokens_to_generate > generation.tokens_to_generate:
        yield (
            f"inference.min_tokens_to_generate={generation.min_tokens_to_generate} exceeds "
            f"inference.tokens_to_generate={generation.tokens_to_generate}"
        )
