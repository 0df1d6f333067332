"""Model, prompts and answers of `neva infer` before anything is generated."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.config.language import language_config_of
from neva.config.layout import division_problems
from neva.config.paths import model_source
from neva.config.stored import check_stored
from neva.config.tower import vision_config_of
from neva.errors import UserError
from neva.findings import Findings
from neva.formats.nemo_header import nemo_config
from neva.planner.tensors import ModelSpec, Split, stage_weights
from neva.precision import precision_named


def find_model(cfg: DictConfig, found: Findings) -> None:
    """Adds what the `.nemo` records of itself, where there is one."""
    source = model_source(cfg)
    recorded = nemo_config(source) if source.exists() else None
    if recorded is None:
        return
    found.add("model", f"{recorded['num_layers']} layers, hidden size {recorded['hidden_size']}")
    sizes = cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size
    problems = list(division_problems(OmegaConf.create(recorded), *sizes))
    found.problems += problems
    if "mm_cfg" in recorded:
        found.add("template", recorded["data"]["conv_template"])
        if not problems:
            _find_weights(cfg, OmegaConf.create(recorded), source, found)
    else:
        found.problems.append(
            f"neva_model_file: {source} holds a language model alone; expected what a LLaVA training wrote"
        )


def _find_weights(cfg: DictConfig, recorded: DictConfig, source: Path, found: Findings) -> None:
    """Adds what the weights take on the fullest device, beside keys, values and activations."""
    packing = cfg.inference.quantization
    try:
        check_stored(recorded, source)
        model = ModelSpec(
            vision_config_of(recorded),
            language_config_of(recorded),
            recorded.mm_cfg.mm_mlp_adapter_type,
            recorded.make_vocab_size_divisible_by,
            frozenset(),
            packing,
        )
    except UserError as error:
        found.problems.append(str(error))
        return
    precision = precision_named(cfg.trainer.precision)
    tensor, stages = cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size
    largest = max(
        sum(weight.bytes_of(weight.numel, precision.num_bytes) for weight in stage_weights(model, split))
        for split in (Split(tensor, stages, stage) for stage in range(stages))
    )
    packed = "" if packing is None else f", matrices of the language model's layers in {packing}"
    size = f"{largest / 2**30:,.1f} GiB" if largest >= 2**30 else f"{largest / 2**10:,.1f} KiB"
    found.add("weights", f"{size} on a device, {precision.dtype_name}{packed}")


def find_prompts(cfg: DictConfig, found: Findings) -> None:
    """Adds the number of prompts, and a note on answers that are there already."""
    settings, prompts = cfg.inference, Path(cfg.prompt_file)
    if prompts.is_file() and Path(settings.images_base_path).is_dir():
        from neva.inference.prompts import read_requests

        try:
            requests = read_requests(prompts, Path(settings.images_base_path), settings.insert_image_token)
        except UserError as error:
            found.problems.append(str(error))
        else:
            found.add("prompts", f"{len(requests):,} in batches of {settings.batch_size}")
            if errors := [request.error for request in requests if request.error is not None]:
                found.problems.append(
                    f"{len(errors):,} of {len(requests):,} prompts cannot be asked; the first: {errors[0]}"
                )
    if Path(cfg.output_file).is_file():
        found.notes.append(f"{cfg.output_file} exists: answers that it holds are kept, the rest is added")
