"""Model, prompts and answers of `neva infer` before anything is generated."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.config.layout import division_problems
from neva.config.paths import model_source
from neva.errors import UserError
from neva.findings import Findings
from neva.formats.nemo_header import nemo_config


def find_model(cfg: DictConfig, found: Findings) -> None:
    """Adds what the `.nemo` records of itself, where there is one."""
    source = model_source(cfg)
    recorded = nemo_config(source) if source.exists() else None
    if recorded is None:
        return
    found.add("model", f"{recorded['num_layers']} layers, hidden size {recorded['hidden_size']}")
    sizes = cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size
    found.problems += division_problems(OmegaConf.create(recorded), *sizes)
    if "mm_cfg" in recorded:
        found.add("template", recorded["data"]["conv_template"])
    else:
        found.problems.append(
            f"neva_model_file: {source} holds a language model alone; expected what a LLaVA training wrote"
        )


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
