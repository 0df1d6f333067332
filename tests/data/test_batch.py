"""A batch goes to another device whole."""

from __future__ import annotations

import torch

from neva.data.batch import Batch


def test_all_tensors_go_to_the_device_and_the_rest_stays() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(ids, ids + 1, torch.zeros(1, 3, 4, 4), ["a", "b"], 5)
    moved = batch.to(torch.device("meta"))
    tensors = (moved.input_ids, moved.labels, moved.pixel_values)
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 3
    assert (moved.pixel_values.shape, moved.record_ids, moved.num_tokens) == ((1, 3, 4, 4), ["a", "b"], 5)
    assert batch.input_ids.device.type == "cpu"
