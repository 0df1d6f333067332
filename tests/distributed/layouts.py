"""Runs of one tiny LLaVA in many layouts, in processes that live for all layouts of their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from neva.config.peft import lora_of
from neva.constants import ADAPTERS, IGNORE_INDEX, IMAGE_TOKEN_ID, PROJECTOR, VOCABULARY
from neva.data.batch import Batch
from neva.data.collate import feature_order, picture_shapes
from neva.data.dataset import NO_RECORD, Sample
from neva.data.loader import build_loader
from neva.data.validation import ValidationBatchDataset, validation_steps
from neva.distributed import groups
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.distributed.fsdp.sharding import Sharding, fully_sharded
from neva.distributed.megatron_ddp import data_parallel
from neva.families.any_resolution import AnyResolution, CappedResolution
from neva.families.configs import (
    DecoderForm,
    ExpertsConfig,
    LanguageConfig,
    LoraConfig,
    VisionConfig,
    padded_vocab_size,
)
from neva.families.media_tokens import MediaRules, media_rules
from neva.families.own_shapes import FlexibleShape, KeptShape, NativeShape
from neva.families.two_towers import Colours, with_second
from neva.model.adapters import Adapter
from neva.model.build import build_model, set_trainable
from neva.model.compiled import compile_layers
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from neva.optim.megatron import build_optimizer
from neva.training.step import run_global_batch
from neva.training.validation import held_out_loss
from neva.weights.load import global_name, load_native
from tests.megatron import meetings, ranks_tell, unnamed_batch

VOCAB, SAMPLES, HELD_OUT, STEPS, SIDE, SOURCES = 99, 8, 5, 2, 28, 3
NEWLINE, QUARTERS = "mlp2x_gelu_newline", "mlp2x_gelu_downsample"
VISION = VisionConfig(
    model_type="clip", image_size=SIDE, patch_size=7, hidden_size=24, num_layers=3, num_heads=3,
    ffn_hidden_size=40, hidden_act="quick_gelu", layer_norm_eps=1e-5, select_layer=-2, class_token_length=1,
)  # fmt: skip
IDEFICS2 = replace(
    VISION, model_type="idefics2_vision", hidden_act="gelu_pytorch_tanh", class_token_length=0, select_layer=-1,
    post_layernorm=True,
)  # fmt: skip
SIGLIP2 = replace(VISION, model_type="siglip2", hidden_act="gelu_pytorch_tanh", class_token_length=0)
TWO_TOWERS = with_second(
    VISION, SIGLIP2, Colours([0.5] * 3, [0.5] * 3), Colours([0.4, 0.5, 0.3], [0.2, 0.3, 0.4])
)
PERCEIVER = "perceiver_n3_d1_h4x8_g2_m24"


VARIANTS = (
    "tiles", "capped", "quarters", "own_shape", "idefics2", "naflex", "two_towers", "experts", "whole_images",
    "whole_prompts",
)  # fmt: skip
"""Models and data of their own, by the field of a case."""

NUMBERS = ("loss", "sources", "held_out", "norm")
"""What is compared number by number."""


@dataclass(frozen=True)
class Case:
    """One layout; data parallel is what the processes leave."""

    processes: int
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual: int | None = None
    first_layers: int | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    recompute: str | None = None
    micro_batch: int = 2
    text_on_one_rank: bool = False
    tied: bool = False
    fsdp: str | None = None
    tiles: bool = False
    capped: bool = False
    quarters: bool = False
    packed: bool = False
    own_shape: bool = False
    experts: bool = False
    expert: int = 1
    idefics2: bool = False
    naflex: bool = False
    two_towers: bool = False
    whole_images: bool = False
    whole_prompts: bool = False
    form: str | None = None
    lora: str | None = None
    compiled: bool = False

    @property
    def variant(self) -> str:
        """Which of the reference's models and data it has."""
        if self.form is not None or self.lora is not None:
            return f"{self.form}{self.lora}"
        changed = [name for name in VARIANTS if getattr(self, name)]
        return changed[0] if changed else str(self.tied)

    def __str__(self) -> str:
        data = self.processes // (self.tensor * self.pipeline * self.context)
        words = [
            f"tp{self.tensor}",
            f"pp{self.pipeline}",
            f"cp{self.context}",
            f"dp{data}",
            f"mbs{self.micro_batch}",
        ]
        words += [f"vpp{self.virtual}"] * (self.virtual is not None)
        words += [f"first-stage-{self.first_layers}-layers"] * (self.first_layers is not None)
        words += [f"ep{self.expert}"] * self.experts
        switches = (
            "sequence_parallel", "distributed_optimizer", "text_on_one_rank", "tied", "tiles", "capped",
            "quarters", "packed", "own_shape", "idefics2", "naflex",
            "two_towers", "whole_images", "whole_prompts", "compiled",
        )  # fmt: skip
        words += [name for name in switches if getattr(self, name)]
        words += [f"form-{self.form}"] * (self.form is not None)
        words += [f"lora-{self.lora}"] * (self.lora is not None)
        words += [f"fsdp-{self.fsdp}"] * (self.fsdp is not None)
        return " ".join(words + ([f"recompute-{self.recompute}"] if self.recompute else []))


CASES = [
    Case(1, micro_batch=1),
    Case(1, micro_batch=4),
    Case(1, recompute="full"),
    Case(1, recompute="selective"),
    Case(1, distributed_optimizer=True),
    Case(2),
    Case(2, micro_batch=4),
    Case(2, distributed_optimizer=True),
    Case(2, tensor=2),
    Case(2, tensor=2, tied=True),
    Case(2, tensor=2, micro_batch=1),
    Case(2, tensor=2, sequence_parallel=True),
    Case(2, tensor=2, sequence_parallel=True, recompute="full"),
    Case(2, pipeline=2),
    Case(2, pipeline=2, tied=True),
    Case(2, pipeline=2, micro_batch=1),
    Case(2, pipeline=2, recompute="full"),
    Case(4),
    Case(4, text_on_one_rank=True),
    Case(4, tensor=4),
    Case(4, tensor=4, sequence_parallel=True),
    Case(4, pipeline=4, micro_batch=1),
    Case(4, tensor=2, pipeline=2),
    Case(4, tensor=2, pipeline=2, sequence_parallel=True, tied=True),
    Case(4, tensor=2, distributed_optimizer=True),
    Case(4, tensor=2, sequence_parallel=True, micro_batch=4),
    Case(4, pipeline=2, distributed_optimizer=True),
    Case(2, context=2),
    Case(2, context=2, tied=True, micro_batch=1),
    Case(2, context=2, distributed_optimizer=True),
    Case(2, context=2, recompute="full"),
    Case(2, context=2, recompute="selective"),
    Case(2, pipeline=2, virtual=2),
    Case(2, pipeline=2, first_layers=1),
    Case(4, context=2),
    Case(4, context=4, micro_batch=1),
    Case(4, context=2, tensor=2),
    Case(4, context=2, tensor=2, sequence_parallel=True),
    Case(4, context=2, pipeline=2),
    Case(4, pipeline=2, virtual=2, tied=True, distributed_optimizer=True),
    Case(4, pipeline=2, virtual=2, tensor=2, sequence_parallel=True),
    Case(1, fsdp="full"),
    Case(2, fsdp="full"),
    Case(2, fsdp="full", recompute="full"),
    Case(2, fsdp="full", text_on_one_rank=True),
    Case(2, fsdp="full", tied=True),
    Case(2, fsdp="grad"),
    Case(2, fsdp="grad", tied=True, recompute="selective"),
    Case(4, fsdp="full"),
    Case(4, fsdp="full", micro_batch=1),
    Case(4, fsdp="full", context=2),
    Case(4, fsdp="hybrid", micro_batch=1),
    Case(2, fsdp="full", tensor=2, sequence_parallel=True),
    Case(4, fsdp="full", tensor=2),
    Case(4, fsdp="grad", tensor=2, sequence_parallel=True, tied=True, recompute="full"),
    Case(4, fsdp="hybrid", tensor=2, micro_batch=1),
    Case(2, tensor=2, tiles=True),
    Case(2, pipeline=2, tiles=True, micro_batch=1),
    Case(2, context=2, tiles=True),
    Case(2, fsdp="full", tiles=True),
    Case(4, capped=True, tensor=2, context=2, sequence_parallel=True),
    Case(2, tensor=2, quarters=True, sequence_parallel=True),
    Case(2, pipeline=2, quarters=True, micro_batch=1),
    Case(2, context=2, quarters=True),
    Case(2, fsdp="full", quarters=True),
    Case(1, packed=True),
    Case(2, packed=True, context=2, recompute="full"),
    Case(2, packed=True, fsdp="full"),
    Case(4, packed=True, tensor=2, pipeline=2, virtual=2, micro_batch=1, sequence_parallel=True),
    Case(2, own_shape=True),
    Case(2, own_shape=True, tensor=2, sequence_parallel=True),
    Case(2, own_shape=True, pipeline=2, micro_batch=1),
    Case(2, own_shape=True, context=2),
    Case(4, own_shape=True, tensor=2, context=2, packed=True),
    Case(2, idefics2=True, tensor=2, sequence_parallel=True),
    Case(2, idefics2=True, pipeline=2, micro_batch=1),
    Case(2, idefics2=True, context=2),
    Case(2, naflex=True, tensor=2, sequence_parallel=True),
    Case(4, naflex=True, pipeline=2, context=2, micro_batch=1),
    Case(2, two_towers=True, tensor=2, sequence_parallel=True),
    Case(2, two_towers=True, fsdp="full", micro_batch=1),
    Case(4, two_towers=True, pipeline=2, context=2, micro_batch=1),
    Case(2, compiled=True, tensor=2, sequence_parallel=True),
    Case(2, whole_images=True, pipeline=2, micro_batch=1),
    Case(4, whole_images=True, tensor=2, context=2, sequence_parallel=True, packed=True),
    Case(2, whole_prompts=True, pipeline=2, micro_batch=1),
    Case(4, whole_prompts=True, tensor=2, context=2, sequence_parallel=True, packed=True),
    Case(2, form="around", tensor=2, sequence_parallel=True, recompute="full"),
    Case(4, form="around", tensor=2, sequence_parallel=True, fsdp="full"),
    Case(2, form="around", pipeline=2, micro_batch=1),
    Case(2, form="around", context=2, packed=True),
    Case(4, form="centred", tensor=2, context=2, sequence_parallel=True),
    Case(2, experts=True, expert=2, distributed_optimizer=True, recompute="full"),
    Case(2, experts=True, fsdp="full", micro_batch=1),
    Case(4, experts=True, fsdp="full", tensor=2, sequence_parallel=True, micro_batch=4),
    Case(4, experts=True, expert=2, fsdp="full", micro_batch=1),
    Case(4, experts=True, expert=2, fsdp="hybrid", recompute="full"),
    Case(4, experts=True, expert=2, fsdp="grad", tensor=2, sequence_parallel=True),
    Case(4, experts=True, expert=2, tensor=2, sequence_parallel=True, micro_batch=4),
    Case(4, experts=True, expert=2, pipeline=2, packed=True, micro_batch=1),
    Case(4, experts=True, expert=2, context=2, distributed_optimizer=True),
    Case(1, lora="canonical", recompute="full"),
    Case(2, lora="nemo", tensor=2),
    Case(2, lora="canonical", tensor=2, sequence_parallel=True, recompute="full"),
    Case(2, lora="nemo", pipeline=2, micro_batch=1),
    Case(2, lora="canonical", context=2, packed=True),
    Case(2, lora="nemo", distributed_optimizer=True),
    Case(2, lora="canonical", fsdp="full", recompute="full"),
    Case(2, lora="nemo", fsdp="grad"),
    Case(4, lora="nemo", fsdp="full", tensor=2, sequence_parallel=True),
    Case(
        4,
        lora="canonical",
        tensor=2,
        pipeline=2,
        virtual=2,
        micro_batch=1,
        sequence_parallel=True,
        packed=True,
    ),
    Case(4, lora="nemo", tensor=2, context=2, sequence_parallel=True, distributed_optimizer=True),
    Case(2, lora="dora-nemo", tensor=2, sequence_parallel=True, distributed_optimizer=True),
    Case(2, lora="dora-canonical", fsdp="full", recompute="full"),
    Case(4, lora="dora-canonical", fsdp="full", tensor=2),
    Case(4, lora="dora-canonical", tensor=2, pipeline=2, micro_batch=1, packed=True),
]
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16, "short_factor": [1.0],
    "long_factor": [2.5],
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "around": {
        "form": DecoderForm(
            norm="rmsnorm1p", norm_place="sandwich_ln", activation="approx-geglu", rotary_share=0.5, qk_norm_over="all",
            query_scalar=7.0, score_cap=2.0, logit_cap=3.0, scales_embeddings=True, global_interval=2,
            local_rope_theta=50.0,
        ),
        "qk_norm": True, "sliding_window": 9, "rope_scaling": LONGROPE,
    },
    "centred": {
        "form": DecoderForm(norm="layernorm", global_interval=3, qk_norm_over="all"), "qk_norm": True,
        "sliding_window": 9,
    },
}  # fmt: skip
"""Of decoders that are not LLaMA's make, each with what several families have."""


def lora(variant: str | None) -> LoraConfig | None:
    """Of every matrix; the second factor is no zeros, so that the first has a gradient; `dora-…` learns lengths."""
    if variant is None:
        return None
    scheme, _, variant = variant.rpartition("-")
    tuning = {
        "variant": variant, "target_modules": ["all"], "adapter_dim": 6, "alpha": 9.0, "adapter_dropout": 0.0,
        "dropout_position": "pre", "column_init_method": "kaiming", "row_init_method": "normal",
        "layer_selection": None,
    }  # fmt: skip
    return lora_of({"peft": {"peft_scheme": scheme or "lora", "lora_tuning": tuning}})


EXPERTS = ExpertsConfig(
    number=4,
    per_token=2,
    ffn_hidden_size=24,
    pre_softmax=True,
    shared_ffn_hidden_size=16,
    aux_loss_coeff=0.05,
)


def language(tensor: int, tied: bool, experts: bool) -> LanguageConfig:
    return LanguageConfig(
        num_layers=4, hidden_size=32, ffn_hidden_size=48, num_heads=8, num_query_groups=4, head_dim=4,
        vocab_size=VOCAB, padded_vocab_size=padded_vocab_size(VOCAB, 8, tensor), max_positions=128,
        rope_theta=5000.0, rope_scaling=None, rms_norm_eps=1e-5, tied=tied, qkv_bias=True, qk_norm=False,
        sliding_window=None, experts=EXPERTS if experts else None,
    )  # fmt: skip


def samples(side: int = SIDE) -> list[Sample]:
    """Ragged samples: one turn or two, images at the front or in the middle, every third without an image.

    Their labels are shifted already.
    """
    draw = torch.Generator().manual_seed(7)
    made: list[Sample] = []
    for number in range(SAMPLES):
        images = int(number % 3 != 0)
        text = torch.randint(0, VOCAB, (6 + 3 * number,), generator=draw)
        image = torch.full((images * VISION.num_tokens,), IMAGE_TOKEN_ID)
        at = number % 2 * 3
        input_ids = torch.cat([text[:at], image, text[at:]])
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        labels[-2 - number : -1] = input_ids[-1 - number :]
        if number == 4:
            labels[at : at + 2] = text[at : at + 2]
        pixels = torch.randn(images, 3, side, side, generator=draw)
        made.append(Sample(input_ids, labels, pixels, str(number), source=number % SOURCES))
    return made


def tiled_samples() -> list[Sample]:
    """The same texts, with none, one or two images cut into any resolution's tiles in the middle of them."""
    return samples_with_media(
        media_rules(VISION, NEWLINE, AnyResolution(((SIDE, 2 * SIDE), (2 * SIDE, SIDE))))
    )


def capped_samples() -> list[Sample]:
    """The same with images whose features are interpolated."""
    pinpoints = ((SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE))
    return samples_with_media(media_rules(VISION, NEWLINE, CappedResolution(pinpoints, 1)))


def samples_with_media(rules: MediaRules) -> list[Sample]:
    """The same texts with images of four shapes in the middle of them."""
    draw = torch.Generator().manual_seed(8)
    sizes = [(70, 30), (20, 41), (28, 28), (33, 90)]
    made: list[Sample] = []
    for number, row in enumerate(samples()):
        media = tuple(rules.image(*sizes[(number + at) % len(sizes)]) for at in range(number % 3))
        is_text = row.input_ids != IMAGE_TOKEN_ID
        images = torch.full((sum(medium.tokens for medium in media),), IMAGE_TOKEN_ID)
        no_labels = torch.full_like(images, IGNORE_INDEX)
        shape = (sum(medium.tiles for medium in media), 3, SIDE, SIDE)
        if rules.tiling.keeps_shape:
            shape = (sum(3 * shape.height * shape.width for shape in picture_shapes(media)),)  # type: ignore[assignment]
        made.append(
            Sample(
                torch.cat([row.input_ids[is_text][:2], images, row.input_ids[is_text][2:]]),
                torch.cat([row.labels[is_text][:2], no_labels, row.labels[is_text][2:]]),
                torch.randn(shape, generator=draw),
                row.record_id,
                media,
                row.source,
            )
        )
    return made


def rows_of(case: Case) -> list[Sample]:
    """The samples of a case."""
    if case.own_shape:
        return samples_with_media(media_rules(VISION, "mlp2x_gelu", KeptShape()))
    if case.idefics2:
        return samples_with_media(media_rules(IDEFICS2, PERCEIVER, NativeShape(14, 35, splits=True)))
    if case.naflex:
        return samples_with_media(media_rules(SIGLIP2, "mlp2x_gelu", FlexibleShape(10)))
    if case.capped:
        return capped_samples()
    return tiled_samples() if case.tiles else samples(2 * SIDE if case.quarters else SIDE)


def share(case: Case, dtype: torch.dtype) -> list[Batch]:
    """This data-parallel rank's micro batches, all of one length that every layout can cut."""
    rank, size = groups.data_parallel_rank(), groups.data_parallel_size()
    rows = rows_of(case)
    if case.packed:
        return packed_share(case, rows, dtype)
    length = -(-max(len(row.input_ids) for row in rows) // 8) * 8
    mine = rows[rank::size]
    if case.text_on_one_rank:
        rows.sort(key=lambda row: len(row.pixel_values))
        mine = rows[rank * len(mine) : (rank + 1) * len(mine)]
    micro_batch = case.micro_batch
    return [
        replace(
            unnamed_batch(
                torch.stack([padded(row.input_ids, length, 0) for row in part]),
                torch.stack([padded(row.labels, length, IGNORE_INDEX) for row in part]),
                torch.cat([row.pixel_values for row in part]).to(dtype),
            ),
            feature_order=feature_order([medium for row in part for medium in row.media]),
            sample_lengths=[[len(row.input_ids)] for row in part],
            sample_sources=[[row.source] for row in part],
            pictures=picture_shapes([medium for row in part for medium in row.media]),
        )
        for part in (mine[first : first + micro_batch] for first in range(0, len(mine), micro_batch))
    ]


def packed_share(case: Case, rows: list[Sample], dtype: torch.dtype) -> list[Batch]:
    """The same with two samples in a row, the shortest with the longest."""
    packs = [(rows[number], rows[-1 - number]) for number in range(SAMPLES // 2)]
    length = -(-max(len(torch.cat([row.input_ids for row in pack])) for pack in packs) // 8) * 8
    mine = packs[groups.data_parallel_rank() :: groups.data_parallel_size()]
    micro_batch = case.micro_batch
    batches = []
    for part in (mine[first : first + micro_batch] for first in range(0, len(mine), micro_batch)):
        batch = unnamed_batch(
            torch.stack([padded(torch.cat([row.input_ids for row in pack]), length, 0) for pack in part]),
            torch.stack(
                [padded(torch.cat([row.labels for row in pack]), length, IGNORE_INDEX) for pack in part]
            ),
            torch.cat([row.pixel_values for pack in part for row in pack]).to(dtype),
        )
        batches.append(
            replace(
                batch,
                sample_lengths=[[len(row.input_ids) for row in pack] for pack in part],
                sample_sources=[[row.source for row in pack] for pack in part],
                pictures=picture_shapes([medium for pack in part for row in pack for medium in row.media]),
            )
        )
    return batches


def padded(row: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=value)


def build(case: Case, dtype: torch.dtype) -> list[NevaModel]:
    """The pieces of the model that this rank holds."""
    sees = {"sees_whole_images": case.whole_images, "sees_whole_prompts": case.whole_prompts}
    changes = {**sees, **FORMS.get(case.form or "", {})}
    changes["lora"] = lora(case.lora)
    shape = replace(language(case.tensor, case.tied, case.experts), **changes)
    switches: dict[str, Any] = {"recompute_granularity": case.recompute}
    if case.recompute == "full":
        switches |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    if case.experts:  # each sample is balanced by itself, however samples are spread
        coefficient = EXPERTS.aux_loss_coeff
        switches |= {"moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": coefficient}
        switches |= {"expert_model_parallel_size": case.expert, "moe_z_loss_coeff": 0.01}
    config = transformer_config(
        shape,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=case.tensor,
        pipeline_model_parallel_size=case.pipeline,
        virtual_pipeline_model_parallel_size=case.virtual,
        context_parallel_size=case.context,
        num_layers_in_first_pipeline_stage=case.first_layers,
        sequence_parallel=case.sequence_parallel,
        **switches,
    )
    models = [
        build_model(
            tower_of(case),
            shape,
            projector_of(case),
            config,
            piece.is_first,
            piece.is_last,
            piece.virtual,
        ).train()
        for piece in groups.pipeline_stages()
    ]
    for model in models if case.lora else ():
        set_trainable(model, {ADAPTERS, PROJECTOR})
    for model in models if case.compiled else ():
        compile_layers(model)
    return models


def tower_of(case: Case) -> VisionConfig:
    if case.idefics2:
        return IDEFICS2
    if case.two_towers:
        return TWO_TOWERS
    if (case.lora or "").startswith("dora"):  # beside the tower, too
        return replace(VISION, lora=replace(lora(case.lora), sites=(("all", ("whole",)),)))  # type: ignore[type-var]
    return SIGLIP2 if case.naflex else replace(VISION, image_tiles=case.quarters)


def projector_of(case: Case) -> str:
    if case.idefics2:
        return PERCEIVER
    return NEWLINE if case.tiles or case.capped else QUARTERS if case.quarters else "mlp2x_gelu"


def run(case: Case, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Takes `STEPS` optimizer steps in float32, or one forward and backward pass in float64.

    Returns losses and those of sources; in float64 this rank's gradients and the losses of what is held out; in float32
    its drawn weights, the gradient norms, and its parameters after the steps.
    """
    exact = dtype == torch.float64
    models = build(case, dtype)
    initial = {} if exact else {name: value.detach().clone() for name, value in named(models)}
    for model in models:
        load_native(model, weights, VOCAB)
    chunks = wrapped(models, case)
    batch = share(case, dtype)
    optim = OmegaConf.create(
        {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95], "sched": {"min_lr": 0.0}}
    )
    found: dict[str, Any] = {
        "loss": [],
        "sources": [],
        "norm": [],
        "gradients": {},
        "held_out": [],
        "models": models,
        "initial": initial,
    }
    optimizer: Any = None
    if not exact and case.fsdp:
        optimizer = ShardedAdamW(chunks[0], optim, {}, 1.0)
    elif not exact:
        optimizer = build_optimizer(chunks, optim, {}, 1.0, dtype, case.distributed_optimizer)
    for _ in range(1 if exact else STEPS):
        for chunk in chunks:
            chunk.zero_grad_buffer()
        if optimizer is not None:
            optimizer.zero_grad()
        loss = run_global_batch(chunks, batch, torch.device("cpu"), num_sources=SOURCES)
        found["loss"].append(loss.mean)
        found["sources"] += [of.loss_sum / of.num_label_tokens for of in loss.by_source]
        found["sources"] += [loss.load_balancing_loss, loss.z_loss]
        assert (loss.load_balancing_loss > 0) == (loss.z_loss > 0) == case.experts
        if exact:  # before gradients are taken: it must not change them
            found["held_out"] = held_out(case, chunks, dtype)
        if exact and not case.distributed_optimizer:
            trained = [(name, value) for name, value in named(models) if value.requires_grad]
            gradients = {name: value.grad if case.fsdp else value.main_grad for name, value in trained}
            found["gradients"] = {name: joined(value).clone() for name, value in gradients.items()}
        if optimizer is not None:
            found["norm"].append(optimizer.step()[1])
    if not exact:
        found["after"] = {name: joined(value.detach()).clone() for name, value in named(models)}
    return found


class HeldOutSamples:
    """Fewer samples than a global batch has places, as the dataset gives them: their labels are not shifted."""

    def __init__(self, rows: list[Sample], dtype: torch.dtype) -> None:
        self.rows = [row._replace(pixel_values=row.pixel_values.to(dtype)) for row in rows[:HELD_OUT]]

    def read_or_skip(self, index: int) -> Sample:
        row = self.rows[index]
        return row._replace(labels=torch.cat([torch.tensor([IGNORE_INDEX]), row.labels[:-1]]))

    def blank(self, pad_id: int) -> Sample:
        ids, labels = torch.tensor([pad_id]), torch.tensor([IGNORE_INDEX])
        return Sample(ids, labels, self.rows[0].pixel_values[:0], NO_RECORD, ())


def held_out(case: Case, chunks: list[Any], dtype: torch.dtype) -> list[float]:
    """The validation loss of five samples in a global batch of eight places, and those of their sources."""
    batches = ValidationBatchDataset(
        HeldOutSamples(rows_of(case), dtype),  # type: ignore[arg-type]
        micro_batch_size=case.micro_batch,
        pad_id=0,
        pad_to_multiple_of=8 if case.form is None else 48,  # angles depend on the length of a row
        same_length=case.pipeline > 1,
    )
    steps = validation_steps(HELD_OUT, SAMPLES, limit=None, drop_last=False)
    shards = [step[groups.data_parallel_rank() :: groups.data_parallel_size()] for step in steps]
    loss = held_out_loss(chunks, build_loader(batches, shards, 0), torch.device("cpu"), SOURCES)
    return [loss.mean, *(of.loss_sum / of.num_label_tokens for of in loss.by_source)]


def wrapped(models: list[NevaModel], case: Case) -> list[Any]:
    """The model under Megatron's data parallel, or in shares, with "nodes" of two ranks."""
    if case.fsdp is None:
        return [*data_parallel(models, case.distributed_optimizer)]
    sharding = Sharding(case.fsdp, node_ranks=2, reduce_dtype=torch.float32, cpu_offload=False)
    return [fully_sharded(models[0], sharding, torch.device("cpu"))]


def joined(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def named(models: list[NevaModel]) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters under the names that they have in a whole model."""
    return [(global_name(model, name), value) for model in models for name, value in model.named_parameters()]


def alone(case: Case) -> Case:
    """The case's model and data on one process, one micro batch of everything."""
    kept = {name: getattr(case, name) for name in (*VARIANTS, "tied", "form", "lora")}
    return Case(1, micro_batch=SAMPLES, **kept)


def reference(folder: Path, cases: list[Case]) -> None:
    """What one process makes of the cases: weights, gradients, and parameters after the steps, as files."""
    groups.init_process_group(0, 1)
    for case in {case.variant: alone(case) for case in cases}.values():
        variant = case.variant
        groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
        weights = {name: value.detach().clone() for name, value in named(build(case, torch.float32))}
        write(folder, f"initial{variant}", weights)
        draw = torch.Generator().manual_seed(3)
        for value in weights.values():  # norms and biases away from ones and zeros
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
        write(folder, f"weights{variant}", weights)
        weights = load_file(folder / f"weights{variant}.safetensors")
        numbers = {}
        for dtype in (torch.float64, torch.float32):
            found = run(case, weights, dtype)
            name = str(dtype).removeprefix("torch.")
            if dtype == torch.float64:
                untrained = {key: torch.zeros_like(value) for key, value in named(found["models"])}
                write(folder, f"gradients{variant}", untrained | found["gradients"])
            else:
                write(folder, f"after{variant}", found["after"])
            for kind in NUMBERS:
                numbers[f"{name} {kind}"] = torch.tensor(found[kind], dtype=torch.float64)
        save_file(numbers, folder / f"numbers{variant}.safetensors")
    groups.destroy()


def write(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Saves whole tensors; vocabulary padding, which depends on the layout, is cut off."""
    kept = {key: value[:VOCAB] if key in VOCABULARY else value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in kept.items()}, folder / f"{name}.safetensors")


def differences(case: Case, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Returns the largest difference of each kind between this rank and the reference."""
    name = str(dtype).removeprefix("torch.")
    found = run(case, load_file(folder / f"weights{case.variant}.safetensors"), dtype)
    numbers = load_file(folder / f"numbers{case.variant}.safetensors")
    worst: dict[str, float] = {}
    for kind in NUMBERS:
        pairs = zip(found[kind], numbers[f"{name} {kind}"].tolist(), strict=True)
        if found[kind]:
            worst[kind] = max(abs(a - b) for a, b in pairs)
    if found["gradients"]:
        expected = whole(case, found["models"], folder / f"gradients{case.variant}.safetensors")
        for part in ("vision_tower", "projector", "language_model"):
            pairs = [(g, expected[n]) for n, g in found["gradients"].items() if part in n.split(".")[0]]
            largest = max((float(b.abs().max()) for _, b in pairs), default=1.0)
            worst[f"gradient {part}"] = (
                max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / largest
            )
    if dtype == torch.float32:
        expected = whole(case, found["models"], folder / f"after{case.variant}.safetensors")
        # Keys' biases do not change attention: their gradients are rounding, which Adam scales up to whole steps.
        compared = [
            (n, v) for n, v in found["after"].items() if "k_proj.bias" not in n and n not in VOCABULARY
        ]
        worst["parameters"] = max(float((v - expected[n]).abs().max()) for n, v in compared)
        expected = whole(case, found["models"], folder / f"initial{case.variant}.safetensors")
        filled = {n: v.any(dim=-1, keepdim=True) if n in VOCABULARY else 1 for n, v in expected.items()}
        worst["initial"] = max(
            float(((v - expected[n]) * filled[n]).abs().max()) for n, v in found["initial"].items()
        )
    return worst


def whole(case: Case, models: list[NevaModel], path: Path) -> dict[str, Tensor]:
    """This rank's share of what a file holds for one process; `models`, which are done with, take it in."""
    tensors = load_file(path)
    if case.fsdp:  # what is compared is joined
        models = build(case, models[0].config.params_dtype)
    for model in models:
        load_native(model, tensors, VOCAB)
    return {name: value.detach().clone() for name, value in named(models)}


def worker(
    rank: int, size: int, port: int, folder: Path, cases: list[Case], mutation: str, results: Any
) -> None:
    """Runs all cases of `size` processes; rank 0 reports the worst over the ranks."""
    torch.set_num_threads(1)
    mutate(mutation)
    for case, _ in zip(cases, meetings(rank, size, port), strict=False):
        layout = groups.ParallelSizes(case.tensor, case.pipeline, case.context, case.virtual, case.expert)
        groups.init_model_parallel(layout, seed=1234)
        for dtype in (torch.float64, torch.float32):
            worst: list[Any] = [None] * size
            dist.all_gather_object(worst, differences(case, folder, dtype))
            if rank == 0:
                merged = {kind: max(row.get(kind, 0.0) for row in worst) for kind in worst[0]}
                results.put((asdict(case), str(dtype).removeprefix("torch."), merged))
    groups.destroy()


def mutate(mutation: str) -> None:
    """Breaks this process on purpose."""
    from neva.model import attention, llava
    from neva.training import step

    if mutation == "image_gradients":
        NevaModel.image_parameters = lambda self: []  # type: ignore[method-assign]
    elif mutation == "images_on_every_rank":
        llava.shard_images = lambda pixel_values, rank, size: pixel_values
        llava.gather_from_sequence_parallel_region = lambda features, **_: features
    elif mutation == "context_order":
        attention.gather_sequence = gather_from_sequence_parallel_region
    elif mutation == "context_features":
        gather = llava.gather_from_sequence_parallel_region
        llava.gather_from_sequence_parallel_region = lambda features, group, **_: gather(
            features, tensor_parallel_output_grad=False, group=group
        )
    elif mutation == "mean_per_rank":
        summed = step.LOSSES["token"]

        def averaged(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            loss, num_tokens, report = summed(losses)
            return loss / num_tokens, torch.ones_like(num_tokens), report

        step.LOSSES["token"] = averaged
    elif mutation == "whole_factors":
        made = Adapter._factors

        def alone(*arguments: Any) -> Any:
            factors = made(*arguments)
            for factor in factors.parameters():
                factor.sequence_parallel = False
            return factors

        Adapter._factors = alone  # type: ignore[method-assign]
    elif mutation == "mean_over_shares":
        FSDPModule.set_gradient_divide_factor = lambda self, factor: None  # type: ignore[method-assign]


def run_cases(
    folder: Path, cases: list[Case], ports: list[int], mutation: str = ""
) -> list[tuple[Case, str, dict[str, float]]]:
    """Starts the processes of each size once and returns (case, dtype, worst differences)."""
    found: list[tuple[Case, str, dict[str, float]]] = []
    for size, port in zip(sorted({case.processes for case in cases}), ports, strict=False):
        mine = [case for case in cases if case.processes == size]
        told = ranks_tell(worker, size, 2 * len(mine), size, port, folder, mine, mutation)
        found += [(Case(**case), dtype, worst) for case, dtype, worst in told]
    return found
