"""Packed samples: each as if it were alone, in the attention, in its positions and in what it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.model import attention
from neva.model.attention import SDPAttention
from neva.model.build import build_model
from neva.model.context import positions
from neva.model.decoder_spec import transformer_config
from neva.model.packed import PackedSamples, Span, packed_samples
from tests.model.test_against_transformers import VOCAB, shapes

LENGTHS = [[5, 3, 1], [4, 7], [12]]
LENGTH = 12
CPU = torch.device("cpu")


class Group:
    """As much of a context-parallel process group as says which ranks share a row."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def test_rows_are_divided_as_written_out() -> None:
    packed = packed_samples([[2, 1], [4]], 4, Group(0, 1), CPU)  # type: ignore[arg-type]
    assert packed.spans == [
        Span(0, 0, 2, 0, 2),
        Span(0, 2, 3, 2, 3),
        Span(0, 3, 4, 3, 4),
        Span(1, 0, 4, 0, 4),
    ]
    assert packed.positions_sB.t().tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert packed.query_ends.tolist() == packed.key_ends.tolist() == [0, 2, 3, 4, 8]
    assert packed.key_index is None


def test_what_is_read_is_as_written_out() -> None:
    """A sample of which nothing is, and padding, have their last query."""
    unread = [[1, 1], [2]]
    packed = packed_samples([[2, 1], [4]], 4, Group(0, 1), CPU, unread=unread)  # type: ignore[arg-type]
    read = packed.last_read
    assert read is not None
    assert read.spans == [Span(0, 1, 2, 0, 2), Span(0, 2, 3, 2, 3), Span(0, 3, 4, 3, 4), Span(1, 2, 4, 0, 4)]
    assert read.query_index_N.tolist() == [1, 2, 3, 4 + 2, 4 + 3]
    assert read.query_ends.tolist() == [0, 1, 2, 3, 5]
    assert read.hidden_index_N.tolist() == [2 * 1, 2 * 2, 2 * 2 + 1, 2 * 3, 2 * 3 + 1]
    assert read.query_index_N[read.order_N].tolist() == [1, 2, 4 + 2, 3, 4 + 3]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_query_sees_its_own_sample_up_to_itself_on_every_context_rank(size: int) -> None:
    seen = torch.zeros(len(LENGTHS), LENGTH, LENGTH, dtype=torch.int64)
    for rank in range(size):
        group: Any = Group(rank, size)
        packed = packed_samples(LENGTHS, LENGTH, group, CPU)
        shard = positions(LENGTH, group, CPU)
        where = torch.arange(LENGTH) if shard is None else shard
        for row, first, end, first_key, end_key in packed.spans:
            for query in range(first, end):
                seen[row, where[query], first_key : end_key - (end - 1 - query)] += 1
    expected = torch.zeros_like(seen)
    for row, lengths in enumerate(LENGTHS):
        first = 0
        for length in [*lengths, LENGTH - sum(lengths)]:
            expected[row, first : first + length, first : first + length] = torch.ones(length, length).tril()
            first += length
    assert torch.equal(seen, expected)


def core(window: int | None, groups: int = 2) -> SDPAttention:
    language = replace(shapes("clip", groups, False)[1], sliding_window=window)
    config = transformer_config(language)
    collection = ProcessGroupCollection.use_mpu_process_groups(["cp"])
    return SDPAttention(config, 1, AttnMaskType.causal, "self", pg_collection=collection, language=language)


def reference_kernel(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor]:
    """What FlashAttention documents of samples of several lengths: causal, the last query at the last key."""
    query_ends, key_ends, most_queries, most_keys, dropout, causal, _ = arguments
    assert causal and dropout == 0.0 and query_ends.dtype == key_ends.dtype == torch.int32
    outputs, heads = [], query.size(1) // key.size(1)
    for sample in range(len(query_ends) - 1):
        q = query[query_ends[sample] : query_ends[sample + 1]]
        k, v = (
            part[key_ends[sample] : key_ends[sample + 1]].repeat_interleave(heads, 1) for part in (key, value)
        )
        assert len(q) <= most_queries and len(k) <= most_keys
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        hidden = distance < 0
        if options["window_size_left"] is not None:
            hidden |= distance > options["window_size_left"]
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.size(-1) ** -0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return (torch.cat(outputs),)


@pytest.mark.parametrize("window", [None, 3])
def test_one_by_one_and_at_once_equal_a_mask(
    single_process: None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, draw = core(window), torch.Generator().manual_seed(0)
    query = torch.randn(LENGTH, 3, 6, 8, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, LENGTH, 3, 2, 8, generator=draw, dtype=torch.float64)
    mask = torch.zeros(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    for row, lengths in enumerate(LENGTHS):
        parts = [torch.ones(length, length, dtype=torch.bool) for length in (*lengths, LENGTH - sum(lengths))]
        mask[row, 0] = torch.block_diag(*parts).bool().tril()
    if window is not None:
        mask &= torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1 - window)
    expected = module(query, key, value, mask)
    packed = packed_samples(LENGTHS, LENGTH, Group(0, 1), CPU)  # type: ignore[arg-type]
    calls = []
    scaled = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(options["attn_mask"])
        return scaled(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(attention.F, "scaled_dot_product_attention", counted)
        one_by_one = module(query, key, value, None, packed_seq_params=packed)
    torch.testing.assert_close(one_by_one, expected, atol=1e-14, rtol=1e-12)
    assert len(calls) == len(packed.spans) and (window is not None or set(calls) == {None})
    monkeypatch.setattr(attention, "takes_flash", lambda query: True)
    monkeypatch.setattr(attention, "flash_attention", reference_kernel)
    at_once = module(query, key, value, None, packed_seq_params=packed)
    torch.testing.assert_close(at_once, expected, atol=1e-14, rtol=1e-12)
    assert at_once.is_contiguous()
    read = packed_samples(LENGTHS, LENGTH, Group(0, 1), CPU, unread=[[2, 3, 0], [1, 6], [5]])  # type: ignore[arg-type]
    module.is_last = True
    assert read.last_read is not None
    wanted = expected.flatten(0, 1)[read.last_read.hidden_index_N][:, None]
    for takes_flash in (True, False):
        monkeypatch.setattr(attention, "takes_flash", lambda query, takes=takes_flash: takes)
        found = module(query, key, value, None, packed_seq_params=read)
        torch.testing.assert_close(found, wanted, atol=1e-14, rtol=1e-12)


def test_context_ranks_hand_the_kernel_the_keys_that_their_queries_see() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, LENGTH, 3, 2, 8, generator=draw, dtype=torch.float64)
    whole = packed_samples(LENGTHS, LENGTH, Group(0, 1), CPU)  # type: ignore[arg-type]
    expected = run_kernel(query, key, value, whole)
    for rank in range(2):
        group: Any = Group(rank, 2)
        packed = packed_samples(LENGTHS, LENGTH, group, CPU)
        shard = positions(LENGTH, group, CPU)
        found = run_kernel(query[shard], key, value, packed)
        torch.testing.assert_close(found, expected[shard], atol=1e-14, rtol=1e-12)


def run_kernel(query: Tensor, key: Tensor, value: Tensor, packed: PackedSamples) -> Tensor:
    """`SDPAttention._attend_at_once` over the reference kernel."""
    module = SDPAttention.__new__(SDPAttention)
    torch.nn.Module.__init__(module)
    module.dropout, module.window, module.softmax_scale = 0.0, None, None
    original, attention.flash_attention = attention.flash_attention, reference_kernel
    try:
        return module._attend_at_once(query, key, value, packed)
    finally:
        attention.flash_attention = original


def test_the_kernel_is_torchs_own_and_has_a_derivative() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[:10] == (
        ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"]
        + ["dropout_p", "is_causal", "return_debug_mask"]
    )
    assert {"scale", "window_size_left"} <= set(names)
    name = "aten::_flash_attention_forward"
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "AutogradCUDA")


@pytest.mark.parametrize("window", [None, 6])
def test_packed_samples_have_the_loss_and_gradients_that_they_have_alone(
    single_process: None, window: int | None
) -> None:
    vision, language = shapes("clip", groups=2, tied=False)
    model = build_model(
        vision, replace(language, sliding_window=window), "mlp2x_gelu", transformer_config(
            replace(language, sliding_window=window), params_dtype=torch.float64
        )
    ).train()  # fmt: skip
    draw = torch.Generator().manual_seed(5)
    samples = []
    for number in range(5):
        image = torch.full((number % 2 * vision.num_tokens,), IMAGE_TOKEN_ID)
        text = torch.randint(0, VOCAB, (4 + 2 * number,), generator=draw)
        ids = torch.cat([text[:2], image, text[2:]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[-3:-1] = ids[-2:]
        pixels = torch.randn(number % 2, 3, 28, 28, generator=draw, dtype=torch.float64)
        samples.append((ids, labels, pixels))
    losses = torch.cat([model(ids[None], pixels, labels[None]) for ids, labels, pixels in samples])
    losses.double().sum().backward()
    expected = {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }
    model.zero_grad(set_to_none=True)
    rows = [samples[:2], samples[2:]]
    length = 2 + max(sum(len(ids) for ids, _, _ in row) for row in rows)
    packed = [
        torch.stack(
            [
                torch.nn.functional.pad(whole, (0, length - len(whole)), value=fill)
                for whole in (torch.cat([sample[part] for sample in row]) for row in rows)
            ]
        )
        for part, fill in ((0, 0), (1, IGNORE_INDEX))
    ]
    lengths = [[len(ids) for ids, _, _ in row] for row in rows]
    pixels = torch.cat([pixels for _, _, pixels in samples])
    found = model(packed[0], pixels, packed[1], sample_lengths=lengths)
    found.double().sum().backward()
    # Megatron's softmax is float32; the losses come position by position over both rows
    torch.testing.assert_close(found.sort().values, losses.sort().values, atol=1e-6, rtol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():  # sums in another order
        assert (model.get_parameter(name).grad - gradient).abs().max() <= 1e-14 * largest, name
    leaking = model(packed[0], pixels, packed[1])  # without the lengths they see each other
    assert (leaking.sort().values - losses.sort().values).abs().max() > 1e-4
