"""Steps of several layouts on this machine's CPU, beside what `neva plan --cluster` predicts of them.

Two processes over gloo, a core each, float32, full rows. The machine as a cluster is measured first: FLOP/s of a core
while the other one computes the same, and bytes a second of an all-reduce. What counts is how layouts compare: seconds
of each by those of data parallel, measured and predicted. Layouts take turns, several rounds.

    python bench/layouts.py [--rounds 2] [--steps 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gpu.training import TrainedModel, timed
from neva.config.load import load
from neva.distributed import groups
from neva.planner.candidates import layout_of
from neva.planner.cluster import LINK_SHARE, Cluster
from neva.planner.estimate import estimate
from neva.planner.flops import step_flops, total
from neva.planner.job import Job, job_of
from neva.planner.step_time import StepTime, step_time
from neva.training.rehearsal import built_models, full_micro_batch

WORLD, LABEL_SHARE, PEAK_TFLOPS = 2, 0.25, 1.0
MESSAGE = 2**21
"""Bytes of the all-reduce that measures the link: the hidden states of a micro batch."""
CPU = torch.device("cpu")
Task: TypeAlias = Callable[[DictConfig, int], list[float]]
SIZES = [
    "trainer.precision=32", "trainer.accelerator=cpu", f"trainer.devices={WORLD}", "trainer.num_nodes=1",
    "model.num_layers=4", "model.hidden_size=512", "model.ffn_hidden_size=1376", "model.num_attention_heads=8",
    "model.num_query_groups=8", "model.vocab_size=4000", "model.encoder_seq_length=512",
    "model.micro_batch_size=2", "model.global_batch_size=8", "model.mm_cfg.vision_encoder.image_size=112",
    "model.mm_cfg.vision_encoder.patch_dim=14", "model.mm_cfg.vision_encoder.hidden_size=256",
    "model.mm_cfg.vision_encoder.num_layers=4", "model.mm_cfg.vision_encoder.num_attention_heads=4",
    "model.mm_cfg.vision_encoder.ffn_hidden_size=1024", "model.activations_checkpoint_granularity=null",
    "model.activations_checkpoint_method=null", "model.activations_checkpoint_num_layers=null",
]  # fmt: skip
ALONE = ["trainer.devices=1", "model.global_batch_size=4"]
DATA = "data parallel"
LAYOUTS: dict[str, list[str]] = {
    DATA: [],
    "data parallel, sharded optimizer": ["model.optim.name=distributed_fused_adam"],
    "FSDP": ["model.fsdp=true"],
    "tensor parallel": ["model.tensor_model_parallel_size=2"],
    "tensor and sequence parallel": ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"],
    "pipeline": ["model.pipeline_model_parallel_size=2"],
    "context parallel": ["model.context_parallel_size=2"],
    "recomputed": [
        "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
        "model.activations_checkpoint_num_layers=1",
    ],
}  # fmt: skip


def recipe(keys: list[str]) -> DictConfig:
    """Returns the resolved recipe of a layout."""
    return load("llava_7b_finetune", [*SIZES, *keys])


def timed_steps(cfg: DictConfig, steps: int) -> list[float]:
    """Returns the seconds of each optimizer step of this rank; one before them, unseen, warms up."""
    model = cfg.model
    layout = groups.ParallelSizes(
        model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size
    )
    groups.init_model_parallel(layout, seed=1)
    models = built_models(model, CPU)
    for parameter in (each for one in models for each in one.parameters()):
        torch.nn.init.normal_(parameter.data, std=0.02)
    trained = TrainedModel(cfg, models, CPU)
    batch = full_micro_batch(model, LABEL_SHARE)
    batch = replace(batch, pixel_values=torch.randn(batch.pixel_values.shape))
    number = model.global_batch_size // (model.micro_batch_size * groups.data_parallel_size())
    return timed_together(lambda: trained.step([batch] * number), steps)


def timed_messages(cfg: DictConfig, steps: int) -> list[float]:
    """Returns the seconds of each all-reduce of `MESSAGE` bytes."""
    message = torch.ones(MESSAGE // 4)
    return timed_together(lambda: dist.all_reduce(message), steps)


def timed_together(action: Callable[[], Any], times: int) -> list[float]:
    """Returns the seconds of each time that this rank does what all begin together; one before them warms up."""
    found = []
    for _ in range(1 + times):
        dist.barrier()
        found.append(timed(action, CPU))
    return found[1:]


def one_rank(rank: int, task: Task, keys: list[str], steps: int, folder: str, is_alone: bool) -> None:
    """Leaves the median seconds of one process of two, which know nothing of each other where each is alone."""
    torch.set_num_threads(1)
    if is_alone:
        groups.init_process_group(0, 1)
    else:
        groups.init_process_group(rank, WORLD, store=dist.FileStore(f"{folder}/store", WORLD))
    Path(folder, str(rank)).write_text(str(statistics.median(task(recipe(keys), steps))))
    groups.destroy()


def seconds_of(task: Task, keys: list[str], steps: int, is_alone: bool = False) -> float:
    """Returns the seconds of the slower of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_rank, (task, keys, steps, folder, is_alone), nprocs=WORLD)
        return max(float(Path(folder, str(rank)).read_text()) for rank in range(WORLD))


def this_machine(rounds: int, steps: int) -> Cluster:
    """Returns two cores as the GPUs of a node, by what they compute and send."""
    alone = recipe(ALONE)
    work = total(step_flops(job(alone).model, job(alone).work, None).values())
    step_s = statistics.median(seconds_of(timed_steps, ALONE, steps, is_alone=True) for _ in range(rounds))
    message_s = statistics.median(seconds_of(timed_messages, [], steps) for _ in range(rounds))
    link = MESSAGE / message_s  # of two ranks each sends half of it twice
    return Cluster(
        1, WORLD, 16, 2 * link / 1e9 / LINK_SHARE, 1, PEAK_TFLOPS, work.run / step_s / 1e12 / PEAK_TFLOPS
    )


def job(cfg: DictConfig) -> Job:
    """Returns what the planner is asked."""
    return job_of(cfg, cfg.trainer.devices, cfg.trainer.devices, images=1, label_share=LABEL_SHARE)


def predicted(keys: list[str], cluster: Cluster) -> StepTime:
    """Returns what the planner says of a layout."""
    cfg = recipe(keys)
    return step_time(job(cfg), estimate(job(cfg), layout_of(cfg)), cluster)


def main() -> None:
    """Measures, predicts and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each layout")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    arguments = parser.parse_args()
    cluster = this_machine(arguments.rounds, arguments.steps)
    told = {name: predicted(keys, cluster) for name, keys in LAYOUTS.items()}
    taken: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(arguments.rounds):
        for name, keys in LAYOUTS.items():
            taken[name].append(seconds_of(timed_steps, keys, arguments.steps))
    seconds = {name: statistics.median(some) for name, some in taken.items()}
    link = cluster.bandwidth(WORLD, 1) / 1e9
    print(f"a core computes {cluster.flops / 1e9:.0f} GFLOP/s, an all-reduce moves {link:.2f} GB/s\n")
    print(
        "| layout | measured, s | predicted, s | measured by data parallel | predicted | predicted / measured |"
    )
    print("|---|---|---|---|---|---|")
    for name, found in told.items():
        ratios = seconds[name] / seconds[DATA], found.seconds / told[DATA].seconds
        cells = [f"{seconds[name]:.2f}", f"{found.seconds:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {name} | " + " | ".join([*cells, f"{ratios[1] / ratios[0]:.2f}"]) + " |")


if __name__ == "__main__":
    main()
