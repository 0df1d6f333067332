"""The predicted time of a step: by hand for each kind of message, and against steps measured on a GPU."""

from __future__ import annotations

import dataclasses
import json

import pytest

from neva import cli
from neva.config.load import load
from neva.errors import ConfigError
from neva.planner.candidates import Candidate
from neva.planner.cluster import Cluster, cluster_of
from neva.planner.estimate import estimate
from neva.planner.job import Job, job_of
from neva.planner.step_time import StepTime, step_time

CLUSTER = cluster_of("nodes=4,gpus=8,memory=80,nvlink=900,ib=400,tflops=1000,efficiency=0.5")
INSIDE, BETWEEN = 0.8 * 450e9, 0.8 * 50e9
"""Bytes a second of a GPU in each direction, within a node and to others."""
HIDDEN = 8 * 2048 * 4096 * 2
"""Bytes of a micro batch: rows, positions, width, bf16."""
LAYERS, GATED = 32, 3 * 4096 * 11008
DECODER = LAYERS * (4 * 4096**2 + GATED + 2 * 4096)


@pytest.fixture(scope="module")
def llava() -> Job:
    cfg = load("llava_7b_finetune", ["model.global_batch_size=256"])
    return job_of(cfg, CLUSTER.world, CLUSTER.gpus, images=1, label_share=0.5)


def of(job: Job, layout: Candidate, cluster: Cluster = CLUSTER) -> StepTime:
    return step_time(job, estimate(job, layout), cluster)


def layout(tensor: int, pipeline: int, context: int, sharding: str, **more: object) -> Candidate:
    data = CLUSTER.world // (tensor * pipeline * context)
    whole = Candidate(tensor, pipeline, context, data, False, sharding, None)
    return dataclasses.replace(whole, **more)  # type: ignore[arg-type]


def test_a_link_is_that_of_the_node_or_of_what_leaves_it() -> None:
    assert CLUSTER.bandwidth(8, 1) == pytest.approx(INSIDE)
    # a group of all 32 has eight cards in each node, one of every eighth GPU has one
    assert CLUSTER.bandwidth(32, 1) == pytest.approx(8 * BETWEEN)
    assert CLUSTER.bandwidth(4, 8) == pytest.approx(BETWEEN)


def test_tensor_parallel_sums_up_twice_a_layer_and_pass(llava: Job) -> None:
    plain = of(llava, layout(8, 1, 1, "none"))
    # 8 micro batches; forward and backward, each a ring that goes round twice
    expected = 8 * LAYERS * 2 * 2 * 2 * 7 / 8 * HIDDEN / INSIDE
    assert plain.tensor == pytest.approx(expected)
    again = of(llava, layout(8, 1, 1, "none", recompute="full"))
    assert again.tensor == pytest.approx(expected * 3 / 2)
    cut = of(llava, layout(8, 1, 1, "none", sequence_parallel=True))
    assert cut.tensor == pytest.approx(expected * 5 / 4)  # ten halves in place of eight


def test_gradients_are_summed_once_a_step(llava: Job) -> None:
    numel = DECODER + 4096 + 2 * 32000 * 4096 + (1024 * 4096 + 4096) + (4096 * 4096 + 4096)
    assert of(llava, layout(1, 1, 1, "none")).data == pytest.approx(
        2 * 31 / 32 * 4 * numel / (8 * BETWEEN), rel=1e-3
    )
    sharded = of(llava, layout(1, 1, 1, "optimizer"))
    assert sharded.data == pytest.approx(31 / 32 * (4 + 2) * numel / (8 * BETWEEN), rel=1e-3)
    # over tensor parallel 8, one rank a node: through one card of each
    across = of(llava, layout(8, 1, 1, "none"))
    decoder = DECODER - LAYERS * 2 * 4096 + 2 * 32000 * 4096
    assert across.data == pytest.approx(2 * 3 / 4 * 4 * decoder / 8 / BETWEEN, rel=0.03)  # and the projector


def test_stages_wait_for_each_other_and_send_hidden_states(llava: Job) -> None:
    two = of(llava, layout(1, 2, 1, "none"))
    number = 256 // (8 * 16)
    assert two.pipeline == pytest.approx(number * 2 * HIDDEN / BETWEEN)
    assert two.bubble == pytest.approx((two.compute + two.pipeline) / number)


def test_context_parallel_gathers_keys_and_values(llava: Job) -> None:
    four = of(llava, layout(1, 1, 4, "none"))
    assert four.context == pytest.approx(4 * LAYERS * 2 * 3 / 4 * 2 * HIDDEN / INSIDE)


def test_fsdp_hides_behind_the_computation_unless_the_links_are_slow(llava: Job) -> None:
    full, grad = layout(1, 1, 1, "fsdp_full"), layout(1, 1, 1, "fsdp_grad")
    assert of(llava, full).data == 0.0
    slow = dataclasses.replace(CLUSTER, ib=10.0)
    assert of(llava, full, slow).data > of(llava, grad, slow).data > 0.0


@pytest.mark.parametrize(
    ("overrides", "recompute", "measured"),
    [
        # docs/gpu.md: tokens a second of an H200 over positions of a sample
        (["model.num_layers=12"], "full", 22_073 / 2048),
        (["model.num_layers=12"], None, 27_832 / 2048),
        (["model.encoder_seq_length=768", "model.mm_cfg.llm.freeze=true"], None, 16_624 / 768),
    ],
)
def test_steps_measured_on_a_gpu_are_predicted_within_a_tenth(
    overrides: list[str], recompute: str | None, measured: float
) -> None:
    batch = ["trainer.devices=1", "model.micro_batch_size=4", "model.global_batch_size=8"]
    cfg = load("llava_7b_finetune", [*overrides, *batch])
    h200 = cluster_of("nodes=1,gpus=1,memory=140,nvlink=900,ib=400,tflops=989")
    job = job_of(cfg, 1, 1, images=1, label_share=0.5)
    found = of(job, Candidate(1, 1, 1, 1, False, "none", recompute), h200)
    assert found.samples_per_s == pytest.approx(measured, rel=0.1)


def test_layouts_come_in_the_order_of_their_speed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config-name", "llava_7b_finetune", "--json", "--cluster"]
    assert cli.main([*words, "nodes=1,gpus=2,memory=140,nvlink=900,ib=400"]) == 0
    found = json.loads(capsys.readouterr().out)["layouts"]
    speeds = [one["samples_per_s"] for one in found if one["fits"]]
    assert len(speeds) > 5
    assert speeds == sorted(speeds, reverse=True)
    assert found[0]["step_s"] == pytest.approx(sum(found[0]["step_parts_s"].values()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes=1,gpus=8", "memory, nvlink, ib missing"),
        ("nodes=1.5,gpus=8,memory=80,nvlink=900,ib=400", "nodes=1.5, expected a whole number above 0"),
        ("nodes=1,gpus=8,memory=80,nvlink=900,ib=400,efficiency=45", "a share of the peak, at most 1"),
        ("nodes=1,gpus=8,memory=80,nvlink=nan,ib=400", "nvlink=nan, expected a number above 0"),
        ("node=1", "node is none of nodes, gpus"),
    ],
)
def test_a_cluster_that_cannot_be_read_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cluster_of(text)
