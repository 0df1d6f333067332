"""The loss and gradients of a global batch do not depend on how it is split; they equal a computation by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch
from neva.data.dataset import Sample
from neva.distributed import groups
from neva.distributed.megatron_ddp import data_parallel
from neva.model.build import build_model, set_trainable
from neva.model.llava import NevaModel
from neva.training.step import LOSSES, StepLoss, _with_sources, run_global_batch
from tests.megatron import ranks_tell, unnamed_batch
from tests.model.test_against_transformers import VOCAB, shapes

SAMPLES = 8
# float32 sums over the same numbers in another order
TOLERANCE = 1e-6
CPU = torch.device("cpu")


def samples(image_tokens: int) -> list[Sample]:
    """Samples of different lengths and numbers of label tokens, every third without an image, one without labels.

    Their labels are shifted already.
    """
    draw = torch.Generator().manual_seed(7)
    made = []
    for number in range(SAMPLES):
        images = int(number % 3 != 0)
        text = torch.randint(0, VOCAB, (6 + 3 * number,), generator=draw)
        input_ids = torch.cat([torch.full((images * image_tokens,), IMAGE_TOKEN_ID), text])
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        if number != 5:
            labels[-2 - 2 * number : -1] = input_ids[-1 - 2 * number :]
        pixels = torch.randn(images, 3, 28, 28, generator=draw)
        made.append(Sample(input_ids, labels, pixels, str(number), source=number % 2))
    return made


def together(rows: list[Sample]) -> Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    batch = unnamed_batch(
        pad([row.input_ids for row in rows], batch_first=True),
        pad([row.labels for row in rows], batch_first=True, padding_value=IGNORE_INDEX),
        torch.cat([row.pixel_values for row in rows]),
    )
    return replace(
        batch,
        sample_lengths=[[len(row.input_ids)] for row in rows],
        sample_sources=[[row.source] for row in rows],
    )


def build() -> tuple[NevaModel, int]:
    vision, language = shapes("clip", groups=2, tied=False)
    return build_model(vision, language, "mlp2x_gelu").train(), vision.num_tokens


def one_step(model: NevaModel, batch: list[Batch], **options: Any) -> tuple[StepLoss, dict[str, Tensor]]:
    (chunk,) = data_parallel([model])
    chunk.zero_grad_buffer()
    loss = run_global_batch([chunk], batch, CPU, **options)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return loss, {name: model.get_parameter(name).main_grad.clone() for name in names}


def test_loss_and_gradients_equal_a_computation_by_hand(single_process: None) -> None:
    model, image_tokens = build()
    rows = samples(image_tokens)
    total, count = torch.zeros(()), 0
    for row in rows:  # one sample at a time, every logit, the textbook formula
        logits = model(row.input_ids[None], row.pixel_values)[0]
        for position in (row.labels != IGNORE_INDEX).nonzero().flatten():
            total = total - logits[position].log_softmax(-1)[row.labels[position]]
            count += 1
    (total / count).backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad(set_to_none=True)
    loss, gradients = one_step(model, [together(rows)])
    assert loss.num_label_tokens == count
    torch.testing.assert_close(loss.mean, (total / count).item(), atol=TOLERANCE, rtol=TOLERANCE)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=TOLERANCE, rtol=1e-4, msg=name)


def test_any_split_into_micro_batches_gives_the_same_loss_and_gradients(single_process: None) -> None:
    model, image_tokens = build()
    rows = samples(image_tokens)
    loss, gradients = one_step(model, [together(rows)])
    for size in (1, 2, 4):
        split = [together(rows[first : first + size]) for first in range(0, SAMPLES, size)]
        other_loss, other_gradients = one_step(model, split)
        assert other_loss.num_label_tokens == loss.num_label_tokens
        torch.testing.assert_close(other_loss.mean, loss.mean, atol=TOLERANCE, rtol=TOLERANCE)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, atol=TOLERANCE, rtol=1e-4, msg=name)


def test_the_mean_of_micro_batches_equals_a_computation_by_hand(single_process: None) -> None:
    model, image_tokens = build()
    rows = samples(image_tokens)
    split = [rows[:3], rows[3:5], rows[5:6], rows[6:]]  # of different numbers of label tokens; one has none
    means = []
    for part in split:
        total, count = torch.zeros(()), 0
        for row in part:
            logits = model(row.input_ids[None], row.pixel_values)[0]
            for position in (row.labels != IGNORE_INDEX).nonzero().flatten():
                total = total - logits[position].log_softmax(-1)[row.labels[position]]
                count += 1
        means.append(total / max(1, count))
    expected_loss = sum(means) / len(means)
    expected_loss.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad(set_to_none=True)
    loss, gradients = one_step(model, [together(part) for part in split], loss_average="micro_batch")
    assert (loss.num_terms, loss.num_label_tokens) == (4, sum(2 * n + 1 for n in range(SAMPLES) if n != 5))
    torch.testing.assert_close(loss.mean, expected_loss.item(), atol=TOLERANCE, rtol=TOLERANCE)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=TOLERANCE, rtol=1e-4, msg=name)


def test_losses_of_sources_are_sums_over_their_own_label_tokens(single_process: None) -> None:
    model, image_tokens = build()
    rows = samples(image_tokens)
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for row in rows:  # one sample at a time, every logit, the textbook formula
        logits = model(row.input_ids[None], row.pixel_values)[0]
        for position in (row.labels != IGNORE_INDEX).nonzero().flatten():
            sums[row.source] -= logits[position].log_softmax(-1)[row.labels[position]].item()
            counts[row.source] += 1
    split = [together(rows[:3]), together(rows[3:7]), together(rows[7:])]
    loss, gradients = one_step(model, split, num_sources=3)
    assert [found.num_label_tokens for found in loss.by_source] == counts and counts[2] == 0 < min(counts[:2])
    # float32: sums over other lengths of padding
    torch.testing.assert_close([found.loss_sum for found in loss.by_source], sums, atol=0, rtol=1e-6)
    without, same = one_step(model, split)
    assert without == replace(loss, by_source=())
    assert all(torch.equal(gradients[name], same[name]) for name in same)


def test_a_loss_that_is_not_finite_is_its_own_sources_alone() -> None:
    losses, sources = torch.tensor([1.0, torch.nan, 2.0, torch.inf]), torch.tensor([0, 1, 0, 2])
    _, _, report = _with_sources(LOSSES["token"], 3, sources, losses)
    torch.testing.assert_close(
        report[3:].tolist(), [3.0, 2.0, torch.nan, 1.0, torch.inf, 1.0], equal_nan=True
    )


def data_parallel_rank(rank: int, size: int, port: int, results: mp.Queue) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    groups.init_process_group(rank, size)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
    model, image_tokens = build()
    # rank 0 has no image at all in its first micro batch
    mine = samples(image_tokens)[rank::size]
    loss, gradients = one_step(model, [together(mine[:2]), together(mine[2:])])
    results.put((rank, loss, {name: gradient.numpy() for name, gradient in gradients.items()}))
    groups.destroy()


def test_two_data_parallel_processes_give_the_gradients_of_one(single_process: None, free_port: int) -> None:
    model, image_tokens = build()
    loss, gradients = one_step(model, [together(samples(image_tokens))])
    found = ranks_tell(data_parallel_rank, 2, 2, 2, free_port)
    for _, other_loss, other_gradients in found:
        assert other_loss.num_label_tokens == loss.num_label_tokens
        torch.testing.assert_close(other_loss.mean, loss.mean, atol=TOLERANCE, rtol=TOLERANCE)
        for name, gradient in gradients.items():
            other = torch.from_numpy(other_gradients[name])
            torch.testing.assert_close(other, gradient, atol=TOLERANCE, rtol=1e-4, msg=name)


def test_a_batch_without_images_touches_tower_and_projector_with_zero_gradients(single_process: None) -> None:
    model, image_tokens = build()
    text_only = [row for row in samples(image_tokens) if len(row.pixel_values) == 0]
    batch = together(text_only)
    model(batch.input_ids, batch.pixel_values, batch.labels).sum().backward()
    for part in (model.projector, model.vision_tower):
        for parameter in part.parameters():
            assert not parameter.requires_grad or torch.count_nonzero(parameter.grad) == 0


def test_where_pictures_have_their_own_shapes_a_text_shows_the_tower_one_patch(single_process: None) -> None:
    model, _ = build()
    seen: list[torch.Size] = []
    model.vision_tower.register_forward_pre_hook(lambda tower, inputs: seen.append(inputs[0].shape))
    batch = together([row for row in samples(4) if len(row.pixel_values) == 0])
    patch = model.vision_tower.config.patch_size
    losses = [model(batch.input_ids, pixels, batch.labels) for pixels in (torch.empty(0), batch.pixel_values)]
    assert seen == [(1, 3, patch, patch), (1, 3, 28, 28)] and torch.equal(*losses)
    losses[0].sum().backward()
    gradients = [
        weight.grad for part in (model.projector, model.vision_tower) for weight in part.parameters()
    ]
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert sum(gradient is not None for gradient in gradients) > 4


def test_frozen_parts_have_no_gradient_buffer(single_process: None) -> None:
    model, _ = build()
    set_trainable(model, {"projector"})
    (chunk,) = data_parallel([model])
    trained = sum(parameter.numel() for parameter in model.projector.parameters())
    assert (
        sum(buffer.grad_data.numel() for buffer in chunk.buffers) < trained + 512
    )  # Megatron pads its buckets
