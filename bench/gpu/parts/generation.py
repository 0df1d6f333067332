"""Tokens a second when answering at LLaVA-1.5 7B's widths."""

from __future__ import annotations

from functools import partial

import torch
from omegaconf import DictConfig

from bench.gpu.shapes import recipe
from bench.gpu.sheet import Sheet
from bench.gpu.training import random_model, start, timed
from neva.config.tower import vision_config_of
from neva.constants import IMAGE_TOKEN_ID
from neva.inference.generate import Prompt, generate
from neva.inference.sampling import Sampling
from neva.model.llava import NevaModel

GREEDY = Sampling(greedy=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
TEXT, NEW = 64, 64


def generation(sheet: Sheet) -> None:
    """A row for each batch size: seconds to the first token, then tokens a second of all answers together."""
    cfg = recipe("llava_7b_finetune", sheet.tiny, model__encoder_seq_length=1024)
    device = start(cfg)
    model = random_model(cfg, device).eval().requires_grad_(False)
    for batch, ragged in ((1, False), (8, False), (8, True)):
        lengths = "prompts of different lengths" if ragged else "prompts of one length"
        title = f"batch {batch}, {lengths}, {cfg.model.num_layers} layers, {cfg.trainer.precision}"
        with sheet.row(title) as row:
            prompts = prompts_of(cfg, batch, ragged)
            new = 8 if sheet.tiny else NEW
            run(model, prompts, 4, device)
            first, whole = (timed(partial(run, model, prompts, count, device), device) for count in (1, new))
            row["prompt"] = max(len(prompt.input_ids) for prompt in prompts)
            row["new tokens"] = new
            row["first token s"] = round(first, 4)
            row["tokens/s"] = round(batch * (new - 1) / max(whole - first, 1e-9), 1)


def prompts_of(cfg: DictConfig, batch: int, ragged: bool) -> list[Prompt]:
    """Returns prompts of an image and some text each."""
    side, tokens = cfg.model.mm_cfg.vision_encoder.image_size, vision_config_of(cfg.model).num_tokens
    draw = torch.Generator().manual_seed(1)
    found = []
    for number in range(batch):
        text = torch.randint(3, cfg.model.vocab_size, (TEXT - (number if ragged else 0),), generator=draw)
        ids = torch.cat([torch.full((tokens,), IMAGE_TOKEN_ID), text])
        found.append(Prompt(ids, torch.randn(1, 3, side, side, generator=draw)))
    return found


def run(model: NevaModel, prompts: list[Prompt], new: int, device: torch.device) -> list[list[int]]:
    """Generates exactly `new` tokens for each prompt."""
    return generate(
        model,
        prompts,
        GREEDY,
        max_new_tokens=new,
        min_new_tokens=0,
        end_ids=(),
        is_finished=lambda _: False,
        seeds=range(len(prompts)),
        device=device,
    )
