"""Generation with layers that two processes share, or divide among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from neva.distributed import groups
from neva.families.configs import ExpertsConfig
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from tests.inference.test_generate import GREEDY, answers, prompts
from tests.megatron import meetings, ranks_tell
from tests.model.test_against_transformers import shapes

SEED = 1234
SAMPLED = replace(GREEDY, greedy=False, temperature=1.5, top_p=0.95, repetition_penalty=1.2)
LAYOUTS = (
    (2, 1, "untied"),
    (1, 2, "untied"),
    (1, 2, "tied"),
    (2, 1, "experts"),
    (1, 2, "experts"),
)
EXPERTS = ExpertsConfig(
    number=4, per_token=2, ffn_hidden_size=24, pre_softmax=True, shared_ffn_hidden_size=16
)


def generated(tensor: int, pipeline: int, kind: str) -> list[Any]:
    """Greedy and sampled answers; the initial weights do not depend on the layout."""
    groups.init_model_parallel(groups.ParallelSizes(tensor=tensor, pipeline=pipeline), seed=SEED)
    vision, language = shapes("clip", groups=2, tied=kind == "tied")
    language = replace(language, num_layers=4, experts=EXPERTS if kind == "experts" else None)
    config = transformer_config(
        language, tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline,
        pipeline_dtype=torch.float32,
    )  # fmt: skip
    (stage,) = groups.pipeline_stages()
    model = build_model(vision, language, "mlp2x_gelu", config, stage.is_first, stage.is_last)
    model.eval().requires_grad_(False)
    return [
        answers(model, prompts(vision.num_tokens), sampling, rows=3, end_ids=[])
        for sampling in (GREEDY, SAMPLED)
    ]


def worker(rank: int, port: int, results: Any) -> None:
    for _, layout in zip(meetings(rank, 2, port), LAYOUTS, strict=False):
        results.put((layout, generated(*layout)))


def test_two_tensor_parallel_ranks_or_pipeline_stages_answer_as_one(
    single_process: None, free_port: int
) -> None:
    told = ranks_tell(worker, 2, 2 * len(LAYOUTS), free_port)
    alone = {kind: generated(1, 1, kind) for kind in ("untied", "tied", "experts")}
    assert len(told) == 2 * len(LAYOUTS)
    for layout, found in told:
        assert found == alone[layout[-1]], layout
