"""The figures of a proof: native model and transformers, from the written folder, on the same inputs in float32.

Dimensions: S sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neva.errors import CheckpointError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import backend_of, language_config_from_hf
from neva.families.vision_reading import vision_config_from_hf
from neva.formats.hf_files import ADAPTER_WEIGHTS, PARITY_REPORT, read_config
from neva.formats.hf_folder import FolderWeights
from neva.formats.json import write_json
from neva.formats.safetensors import TensorFile

if TYPE_CHECKING:
    from neva.convert.parity.reference import ReferenceOutput

LARGEST_KL = 1e-8
"""Float32 noise between two implementations is about 1e-12; a lost RoPE permutation of a 7B model gives 5e-6."""
TIE = 1e-5
"""Two likeliest tokens whose logits differ by less, relative to the largest logit, are equally likely in float32."""
COMPARED = ("configuration", "weights", "tokenizer", "image_processor")
"""What a proof compares beside logits; a report lists the differences of each."""


class ParityError(CheckpointError):
    """The exported model does not compute what the native one computes."""


def parity_report(
    native_logits: Sequence[Tensor], reference_logits: Sequence[Tensor], answer_lengths: Sequence[int]
) -> dict[str, Any]:
    """Compares logits [S, V] of each sample, whose last `answer_lengths` positions predicted the greedy answer.

    Columns beyond the native vocabulary (rows that the export added) are left out.
    """
    largest, kl, flips, answers = 0.0, 0.0, 0, 0
    positions = 0
    for native_SV, reference_SV, length in zip(native_logits, reference_logits, answer_lengths, strict=True):
        reference_SV = reference_SV[:, : native_SV.shape[1]]
        largest = _larger(largest, (native_SV - reference_SV).abs().max().item())
        kl = _larger(kl, divergence(native_SV, reference_SV).max().item())
        chosen = reference_SV.gather(1, native_SV.argmax(-1, keepdim=True))
        flipped = (reference_SV.amax(-1) - chosen[:, 0]) > TIE * reference_SV.abs().max().clamp(min=1.0)
        flips += int(flipped.sum())
        answers += int(not flipped[-length:].any())
        positions += len(native_SV)
    return {
        "max_abs_logit_difference": largest,
        "max_kl_per_position": kl,
        "argmax_flips": flips,
        "positions": positions,
        "greedy_answers_equal": answers,
        "samples": len(native_logits),
    }


def _larger(first: float, second: float) -> float:
    """Returns the larger of two numbers, NaN when one is NaN: Python's own `max` may drop it."""
    return math.nan if math.isnan(first) or math.isnan(second) else max(first, second)


def divergence(native_SV: Tensor, reference_SV: Tensor) -> Tensor:
    """Returns KL(native || reference) of each position [S], in float64."""
    native, reference = native_SV.double().log_softmax(-1), reference_SV.double().log_softmax(-1)
    return (native.exp() * (native - reference)).sum(-1)


def require_parity(report: Mapping[str, Any]) -> None:
    """Raises ParityError naming every figure of the report that is not as it must be."""
    problems = []
    if not report["max_kl_per_position"] <= LARGEST_KL:  # also true for a NaN
        problems.append(
            f"KL per position reaches {report['max_kl_per_position']:.3g}, allowed is {LARGEST_KL}"
        )
    if report["argmax_flips"]:
        problems.append(
            f"the likeliest token differs at {report['argmax_flips']} of {report['positions']} positions"
        )
    if report["greedy_answers_equal"] != report["samples"]:
        problems.append(f"{report['greedy_answers_equal']} of {report['samples']} greedy answers are equal")
    for part in COMPARED:
        problems += report[f"{part}_differences"]
    if problems:
        raise ParityError("the export failed its proof: " + "; ".join(problems))


def configuration_differences(
    folder: Path, language: LanguageConfig, vision: VisionConfig | None
) -> list[str]:
    """Returns what the written `config.json` says otherwise than the native model, field by field."""
    config = read_config(folder)
    found_language = language_config_from_hf(config, backend_of(language))
    expected = language.with_vocabulary(found_language.vocab_size)
    pairs: list[tuple[Any, Any]] = [(expected, found_language)]
    if vision is not None:
        pairs.append((vision, vision_config_from_hf(config)))
    return [
        f"config.json gives {field}={getattr(found, field)!r}, the model has {getattr(wanted, field)!r}"
        for wanted, found in pairs
        for field in vars(wanted)
        if getattr(found, field) != getattr(wanted, field)
    ]


def write_parity(
    folder: Path,
    answered: Sequence[ReferenceOutput],
    native: Sequence[Tensor],
    differences: Mapping[str, list[str]],
) -> None:
    """Writes `parity.json` into an export that passed.

    Args:
        folder: the export.
        answered: transformers' answers and logits.
        native: the native model's logits [S, V] of the same inputs.
        differences: those found in each of `COMPARED`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    lengths = [item.answer_length for item in answered]
    report = parity_report(native, [item.logits for item in answered], lengths)
    report |= {f"{part}_differences": differences.get(part, []) for part in COMPARED}
    require_parity(report)
    write_report(folder, {"verified": True, **report})


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes `parity.json` into the export."""
    packages = ("torch", "transformers", "megatron-core", "tokenizers")
    versions = {package: version(package) for package in packages}
    adapters = folder / ADAPTER_WEIGHTS
    tensors = len(TensorFile(adapters) if adapters.is_file() else FolderWeights(folder))
    files = sorted(
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} | {PARITY_REPORT}
    )
    write_json(
        folder / PARITY_REPORT, {**report, "tensors_written": tensors, "versions": versions, "files": files}
    )


def write_unverified(folder: Path) -> None:
    """Records in the export that it was not proven."""
    write_report(folder, {"verified": False, "reason": "the proof was switched off with --no-verify"})
