"""Histograms of a data set, as PNG."""

from __future__ import annotations

import io
from typing import Any

from neva.data.inspect_lengths import SomeLengths


def lengths_png(lengths: SomeLengths, longest: int) -> bytes:
    """Returns a histogram of the positions of samples, and of those that carry loss; `longest` is a sequence's end."""
    figure, (left, right) = _figure(2)
    left.hist(lengths.tokens, bins=40, color="tab:blue")
    left.axvline(longest, color="tab:red", linewidth=1, label=f"encoder_seq_length {longest:,}")
    left.set(xlabel="positions of a sample", ylabel="samples")
    left.legend()
    right.hist(100 * lengths.trained / lengths.tokens, bins=40, color="tab:green")
    right.set(xlabel="positions that carry loss, %", ylabel="samples")
    return _png(figure)


def waste_png(shares: dict[str, float]) -> bytes:
    """Returns a bar for the padding of each sampler."""
    figure, (axes,) = _figure(1)
    bars = axes.barh([*shares], [100 * share for share in shares.values()], color="tab:orange")
    axes.bar_label(bars, fmt="%.1f %%", padding=3)
    axes.set(xlabel="padding, % of all positions", xlim=(0, max(1.0, 125 * max(shares.values()))))
    return _png(figure)


def _figure(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(5 * count, 3), layout="constrained", squeeze=False)
    return figure, axes[0]


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()
