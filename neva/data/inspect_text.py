"""Inspected samples as text for a terminal, or without colours for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from neva.data.inspect import Inspected, Stretch
from neva.data.inspect_lengths import SomeLengths

COLOURS = {"trained": "\x1b[32m", "masked": "\x1b[2m", "image": "\x1b[35m"}
SPECIAL, RESET = "\x1b[4m", "\x1b[0m"
LEGEND = "trained", "masked", "image"


def as_text(samples: Sequence[Inspected], coloured: bool) -> Iterator[str]:
    """Yields lines; without colours what is trained stands in ⟦ ⟧."""
    if coloured:
        yield (
            "tokens: "
            + "  ".join(f"{COLOURS[kind]}{kind}{RESET}" for kind in LEGEND)
            + f"  {SPECIAL}special{RESET}"
        )
    else:
        yield "tokens: ⟦trained⟧, the others carry no loss; ↵ is a new line"
    for sample in samples:
        yield ""
        yield from _one(sample, coloured)


def lengths_as_text(lengths: SomeLengths, shares: dict[str, float]) -> Iterator[str]:
    """Yields lines on the lengths of a data set, and on the padding of each sampler."""
    if not len(lengths.tokens):
        return
    some = f"{len(lengths.tokens):,} of {lengths.num_records:,} records"
    middle, most = np.percentile(lengths.tokens, [50, 95])
    yield ""
    yield (
        f"{some}: {lengths.tokens.mean():.0f} positions on average, {middle:.0f} in the middle, 95 % up to {most:.0f}, "
        f"{lengths.tokens.max():,} at most; {lengths.trained.sum() / lengths.tokens.sum():.1%} of them carry loss"
    )
    if shares:
        yield "padding by sampler: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _one(sample: Inspected, coloured: bool) -> Iterator[str]:
    record = sample.record
    yield f"sample {sample.index}" + (
        "" if record is None else f": {record.place}, id {printable(repr(record.id))}"
    )
    if sample.problem is not None:
        yield f"  no sample: {printable(sample.problem)}"
        return
    yield f"  {summary(sample)}"
    for image in sample.images:
        size = (
            "not a file of the image folder" if image.size is None else f"{image.size[0]} x {image.size[1]}"
        )
        yield f"  {printable(image.name)}: {size}"
    if sample.seen_sizes:
        yield f"  the tower sees {_seen(sample)}"
    yield "  " + "".join(_stretch(stretch, coloured) for stretch in sample.stretches)


def _seen(sample: Inspected) -> str:
    """Returns how many pictures the tower sees of each size, in the order of their first."""
    counts = Counter(sample.seen_sizes)
    return ", ".join(f"{count} x ({width} x {height})" for (width, height), count in counts.items())


def summary(sample: Inspected) -> str:
    """Returns how many tokens a sample has and of which kinds."""
    trained, images = sample.count("trained"), sample.count("image")
    turns = len(sample.record.turns) if sample.record else 0
    return (
        f"{turns} turns, {len(sample.images)} images; {sample.num_tokens:,} positions, {images:,} of them of images; "
        f"{trained:,} trained ({trained / sample.num_tokens:.1%})"
    )


def collapsed(stretch: Stretch) -> str:
    """Returns the text of a stretch, an image's many positions as one."""
    return f"<image ×{stretch.num_tokens}>" if stretch.kind == "image" else stretch.text


def _stretch(stretch: Stretch, coloured: bool) -> str:
    text = printable(collapsed(stretch).replace("\n", "↵\n  "))
    if coloured:
        return f"{COLOURS[stretch.kind]}{SPECIAL if stretch.is_special else ''}{text}{RESET}"
    return f"⟦{text}⟧" if stretch.kind == "trained" else text


def printable(text: str) -> str:
    """Returns text without what a terminal would obey or could not show; new lines stay."""
    shown = (
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )
    return "".join(shown)
