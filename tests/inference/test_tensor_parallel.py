"""Generation with layers that two processes share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neva.distributed import groups
from neva.model.build import build_model
from neva.model.language import transformer_config
from tests.inference.test_generate import GREEDY, answers, prompts
from tests.megatron import meetings, ranks_tell
from tests.model.test_against_transformers import shapes

SEED = 1234
SAMPLED = replace(GREEDY, greedy=False, temperature=1.5, top_p=0.95, repetition_penalty=1.2)


def generated(tensor: int) -> list[Any]:
    """Greedy and sampled answers; the initial weights do not depend on the layout."""
    groups.init_model_parallel(groups.ParallelSizes(tensor=tensor), seed=SEED)
    vision, language = shapes("clip", groups=2, tied=False)
    config = transformer_config(language, tensor_model_parallel_size=tensor)
    model = build_model(vision, language, "mlp2x_gelu", config).eval().requires_grad_(False)
    return [
        answers(model, prompts(vision.num_tokens), sampling, rows=3, end_ids=[])
        for sampling in (GREEDY, SAMPLED)
    ]


def worker(rank: int, port: int, results: Any) -> None:
    for _, tensor in zip(meetings(rank, 2, port), (2,), strict=False):
        results.put(generated(tensor))


def test_two_tensor_parallel_ranks_answer_as_one(single_process: None, free_port: int) -> None:
    told = ranks_tell(worker, 2, 2, free_port)
    assert told[0] == told[1] == generated(1)
