"""The layout changes speed and memory, never the result: every layout against one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed import layouts
from tests.distributed.layouts import CASES, Case
from tests.megatron import free_ports

TABLE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"

Found = dict[tuple[Case, str], dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of all cases."""
    folder = tmp_path_factory.mktemp("layouts")
    layouts.reference(folder, CASES)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return {(case, dtype): worst for case, dtype, worst in layouts.run_cases(folder, CASES, free_ports(3))}


def bounds(case: Case) -> dict[str, float]:
    """Largest difference allowed; gradients, compared in float64, are relative to the part's largest gradient.

    float64: sums in another order differ by 1e-15; Megatron's vocabulary-parallel softmax is float32 whatever the
    model is, so a split vocabulary leaves its rounding in, and so does the loss itself.
    Initial weights are drawn, so they are the same bits.
    The losses of what is held out, which fills five of eight places, and of its three sources are summed in float64:
    equal but for that softmax.
    float32: rounding (in the mean of a third of the labels after a step too), and for parameters Adam's quotient of two
    small numbers over two steps of 1e-2.
    """
    gradient = 2e-7 if case.tensor > 1 else 1e-13
    held_out = 1e-12 if case.tensor == 1 else 4e-6
    parts = ("vision_tower", "projector", "language_model")
    others = {
        "initial": 0.0,
        "loss": 4e-6,
        "sources": 6e-6,
        "held_out": held_out,
        "norm": 2e-5,
        # experts that few tokens reach have the smallest quotients
        "parameters": 2e-3 if case.experts else 5e-4,
    }
    return others | {f"gradient {part}": gradient for part in parts}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layout_gives_the_numbers_of_one_process(found: Found, case: Case, dtype: str) -> None:
    worst, limits = found[case, dtype], bounds(case)
    assert {kind: value for kind, value in worst.items() if not value <= limits[kind]} == {}


def test_the_table_in_the_documentation_names_every_layout(found: Found) -> None:
    """Written by `python -m tests.distributed.test_layouts`; figures vary with the machine, rows must not."""
    rows = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if line.startswith("| tp")]
    assert rows == [str(case) for case in CASES]


MUTATIONS = {
    "tower and projector gradients not summed under tensor parallel": "image_gradients",
    "tower gradients counted once for each tensor-parallel rank": "images_on_every_rank",
    "loss averaged on each rank": "mean_per_rank",
    "context parallel: keys left in the order of the ranks": "context_order",
    "context parallel: image gradients of other ranks dropped": "context_features",
    "gradients of an adapter's whole factor not summed over shards of the sequence": "whole_factors",
    "gradients under FSDP divided by the number of ranks": "mean_over_shares",
}
MUTATED = {
    "mean_per_rank": Case(2),
    "context_order": Case(2, context=2),
    "context_features": Case(2, context=2),
    "mean_over_shares": Case(2, fsdp="full"),
    "whole_factors": Case(2, lora="dora-nemo", tensor=2, sequence_parallel=True),
}
"""What a mutation breaks, where it is not tensor parallel."""


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_the_suite_sees_a_wrong_gradient(folder: Path, mutation: str) -> None:
    case = MUTATED.get(mutation, Case(2, tensor=2, sequence_parallel=True))
    (_, _, worst), _ = layouts.run_cases(folder, [case], free_ports(1), mutation)
    limits = bounds(case)
    assert any(value > 100 * limits[kind] for kind, value in worst.items() if kind.startswith("gradient"))


def write_table(found: Found) -> None:
    """Writes docs/layouts.md."""
    exact_kinds = ["gradient vision_tower", "gradient projector", "gradient language_model"]
    rough_kinds = ["loss", "norm", "parameters"]
    lines = [
        "# Layouts, compared",
        "",
        "One tiny LLaVA (CLIP tower, projector, 4 layers with grouped queries), one ragged global batch of 8",
        "samples (images in front, in the middle, none; one turn or two), the same weights. Each layout on real",
        "processes over gloo against one process: largest difference over all ranks. Gradients are relative to the",
        "part's largest gradient; with the distributed optimizer a rank holds only its shard of them, so parameters",
        "speak, compared after two steps of Adam at lr 1e-2. `tests/distributed/test_layouts.py` asserts bounds on",
        "all of it in every run, and that weights from scratch are the same bits in every layout.",
        "",
        "tp, pp, cp, dp: tensor, pipeline, context, data parallel; mbs: micro batch; vpp: virtual stages of a stage;",
        "tiles: images of any resolution, cut into tiles, with LLaVA-NeXT's newline; capped: as LLaVA-OneVision has",
        "them, their features interpolated;",
        "quarters: images of twice the tower's side, joined by `mlp2x_gelu_downsample`;",
        "packed: the same samples, two in a row; own_shape: images in their own shapes, as image_aspect_ratio=keep;",
        "idefics2: its tower on images in their own shapes and on their quarters, with its perceiver;",
        "compiled: layers by torch.compile;",
        "naflex: SigLIP 2's tower on images of at most ten patches;",
        "two_towers: a second tower beside the first, in colours of its own (gradients of both in one column);",
        "whole_images: the positions of an image see each other; whole_prompts: those before the first answer do;",
        "form-around: norms around each part, all heads normed together, half of each head turned, longrope, soft",
        "caps, windows in every other layer with a RoPE of their own; form-centred: layer norms, windows in two of",
        "three layers; ep: expert parallel, of a model with four experts and a shared one in each layer, balanced by",
        "sample; lora: adapters beside every matrix and the projector train, in NeMo's form (nemo) and peft's",
        "(canonical), with the lengths of rows learnt too, and beside the tower (dora).",
        "With tensor parallel, Megatron's softmax over the sharded vocabulary is float32 even in a float64 model: 1e-8",
        "is its rounding, where other layouts show 1e-15.",
        "",
        "| layout | " + " | ".join(f"{kind}, float64" for kind in exact_kinds) + " | "
        + " | ".join(f"{kind}, float32" for kind in rough_kinds) + " |",
        "|---|" + "---|" * 6,
    ]  # fmt: skip
    for case in CASES:
        exact, rough = found[case, "float64"], found[case, "float32"]
        cells = [exact.get(kind) for kind in exact_kinds] + [rough.get(kind) for kind in rough_kinds]
        shown = ["–" if cell is None else f"{cell:.0e}" for cell in cells]
        lines.append(f"| {case} | " + " | ".join(shown) + " |")
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        layouts.reference(Path(name), CASES)
        results = layouts.run_cases(Path(name), CASES, free_ports(3))
    write_table({(case, dtype): worst for case, dtype, worst in results})
