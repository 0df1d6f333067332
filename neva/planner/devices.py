"""What accelerators can do at best."""

from __future__ import annotations

PEAK_BF16 = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s (NVIDIA's data sheets) by words of a GPU's name; the first that fits counts."""


def peak_flops(device_name: str) -> float | None:
    """Returns the dense bf16 peak of a GPU, None where it is not known."""
    return next((peak for words, peak in PEAK_BF16.items() if words in device_name), None)
