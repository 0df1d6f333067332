"""A rank without memory sends what a rank of real processes does, and holds what `neva plan` says."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._device import _device_constructors

from neva.config.load import load
from neva.distributed import groups
from neva.distributed.backend import backend_for
from neva.distributed.collectives import Collectives
from neva.distributed.imagined import META
from neva.distributed.shapes_only import evenly_chosen, shapes_only
from neva.model import experts
from neva.model.layers import prepare_layers
from neva.planner.candidates import layout_of
from neva.planner.estimate import estimate
from neva.planner.job import job_of
from neva.training.rehearsal import built_models, full_micro_batch, rehearse
from neva.training.step import run_global_batch
from tests.megatron import meetings, ranks_tell

PROCESSES, LABEL_SHARE = 2, 0.5
TINY = [
    "trainer.devices=2",
    "model.num_layers=2",
    "model.mm_cfg.vision_encoder.num_layers=2",
    "model.encoder_seq_length=72",
    "model.data.pad_to_multiple_of=8",
    "model.micro_batch_size=1",
]
EXPERTS = ["model.num_moe_experts=4", "model.moe_router_topk=2", "model.moe_aux_loss_coeff=0.02"]
LAYOUTS = [
    # eight micro batches on two stages: more than are run without memory
    [
        "model.num_layers=4",
        "model.pipeline_model_parallel_size=2",
        "model.virtual_pipeline_model_parallel_size=2",
        "model.global_batch_size=8",
    ],
    [
        "model.tensor_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.activations_checkpoint_granularity=full",
        "model.activations_checkpoint_method=uniform",
        "model.activations_checkpoint_num_layers=1",
        "model.global_batch_size=2",
    ],
    [
        "model.context_parallel_size=2",
        "model.optim.name=distributed_fused_adam",
        "model.global_batch_size=1",
    ],
    ["model.fsdp=true", "model.global_batch_size=4"],
    [
        "model.fsdp=true",
        "model.tensor_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.global_batch_size=1",
    ],
    [*EXPERTS, "model.expert_model_parallel_size=2", "model.global_batch_size=2"],
    [*EXPERTS, "model.expert_model_parallel_size=2", "model.fsdp=true", "model.global_batch_size=2"],
    [
        *EXPERTS,
        "model.tensor_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.moe_shared_expert_intermediate_size=32",
        "model.global_batch_size=1",
    ],
    [
        "model.fp8=true",
        "model.ffn_hidden_size=192",
        "model.tensor_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.global_batch_size=1",
    ],
]
if find_spec("bitsandbytes") is not None:
    PACKED = ["model.peft.peft_scheme=qlora", "model.mm_cfg.llm.freeze=true", "model.global_batch_size=2"]
    LAYOUTS += [PACKED, [*PACKED, "model.peft.quantization=int8", "model.fsdp=true"]]
"""Those of even number are compared on the last rank, the others on the first."""


def recipe(layout: list[str]) -> DictConfig:
    return load("quickstart_finetune", [*TINY, *layout])


def count_really(cfg: DictConfig) -> Collectives:
    """One step of this rank of real processes over gloo, with real tensors."""
    cpu, model = torch.device("cpu"), cfg.model
    sizes = groups.ParallelSizes(
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.context_parallel_size,
        model.virtual_pipeline_model_parallel_size,
        model.expert_model_parallel_size,
    )
    groups.init_model_parallel(sizes, model.seed)
    backend = backend_for(model, node_ranks=PROCESSES)
    models = built_models(model, cpu)
    for parameter in (parameter for one in models for parameter in one.parameters()):
        parameter.data.fill_(0.01)  # nothing has drawn weights
    prepare_layers(models, model)
    chunks: list[Any] = backend.wrap(models, cpu)
    optimizer = backend.build_optimizer(chunks, model, cfg.trainer.gradient_clip_val)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    batch = full_micro_batch(model, LABEL_SHARE)
    batch = replace(batch, pixel_values=torch.zeros(batch.pixel_values.shape))
    number = model.global_batch_size // (model.micro_batch_size * groups.data_parallel_size())
    with Collectives() as counted:
        run_global_batch(chunks, [batch] * number, cpu)
        optimizer.step()
    return counted


def count_both(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    experts.choose = evenly_chosen  # what weights draw would be another load on each rank
    recipes = [recipe(layout) for layout in LAYOUTS]
    real = [count_really(cfg) for cfg, _ in zip(recipes, meetings(rank, PROCESSES, port), strict=False)]
    groups.destroy()
    for number, (cfg, counted) in enumerate(zip(recipes, real, strict=True)):
        if (number + rank) % 2:
            alone = rehearse(cfg, rank, LABEL_SHARE)
            job = job_of(cfg, PROCESSES, PROCESSES, images=1, label_share=LABEL_SHARE)
            planned = estimate(job, layout_of(cfg)).stages[alone.place["pp"]]
            results.put((number, dict(counted.number), dict(counted.bytes), alone, planned.state))


def test_a_rank_without_memory_sends_and_holds_what_a_real_one_does(free_port: int) -> None:
    told = ranks_tell(count_both, PROCESSES, len(LAYOUTS), free_port)
    assert sorted(number for number, *_ in told) == [*range(len(LAYOUTS))]
    for number, messages, message_bytes, alone, planned in told:
        assert sum(messages.values()) > 1, "groups of several ranks exchange something"
        assert alone.messages == messages, LAYOUTS[number]
        assert alone.message_bytes == message_bytes, LAYOUTS[number]
        assert (alone.held.parameters, alone.held.gradients) == (planned.parameters, planned.gradients)
        # the planner's is the fullest shard's
        assert 0.99 * planned.optimizer <= alone.held.optimizer <= planned.optimizer


def test_experts_that_take_turns_serve_as_many_tokens_each() -> None:
    _, chosen = evenly_chosen(torch.zeros(12, 8), topk=2, pre_softmax=False)
    assert chosen.flatten().bincount().tolist() == [3] * 8
    assert all(len(set(of_token)) == 2 for of_token in chosen.tolist())


def test_torch_makes_tensors_on_the_asked_device_behind_it_too() -> None:
    _device_constructors.cache_clear()  # as in a process that has asked for no device before
    with shapes_only(), META:
        torch.empty(0)
    with META:  # transformers asks so whether a model's buffers are made yet
        assert torch.tensor([]).is_meta
