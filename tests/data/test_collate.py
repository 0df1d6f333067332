"""Micro batches: padding, shift, the order of images, and nothing lost."""

import torch

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch
from neva.data.collate import collate
from neva.data.dataset import Sample

PAD = 9


def sample(name: str, length: int, images: int = 0) -> Sample:
    """Ids count up from 100; each image takes two positions from the second on; the last two tokens carry loss."""
    ids = torch.arange(100, 100 + length)
    ids[1 : 1 + 2 * images] = IMAGE_TOKEN_ID
    labels = torch.full((length,), IGNORE_INDEX)
    labels[-2:] = ids[-2:]
    marks = torch.arange(images, dtype=torch.float32) + len(name) * 10 + length
    return Sample(ids, labels, marks.view(-1, 1, 1, 1).expand(images, 3, 4, 4), name)


def alone(samples: list[Sample]) -> list[list[Sample]]:
    """Rows of one sample each."""
    return [[one] for one in samples]


def test_a_shard_is_written_out() -> None:
    shard = alone([sample("a", 4), sample("c", 5, images=1), sample("b", 7, images=2), sample("d", 3)])
    first, second = collate(shard, micro_batch_size=2, pad_id=PAD, pad_to_multiple_of=4, same_length=False)
    i, x = IMAGE_TOKEN_ID, IGNORE_INDEX
    assert first.record_ids == ["b", "c"]
    assert first.input_ids.tolist() == [
        [100, i, i, i, i, 105, 106, PAD],
        [100, i, i, 103, 104, PAD, PAD, PAD],
    ]
    assert first.labels.tolist() == [[x, x, x, x, 105, 106, x, x], [x, x, 103, 104, x, x, x, x]]
    # b's two images, then c's.
    assert first.pixel_values[:, 0, 0, 0].tolist() == [17.0, 18.0, 15.0]
    assert second.record_ids == ["a", "d"]
    assert second.input_ids.tolist() == [[100, 101, 102, 103], [100, 101, 102, PAD]]
    assert second.labels.tolist() == [[x, 102, 103, x], [101, 102, x, x]]
    assert second.pixel_values.shape == (0, 3, 4, 4)


def test_shapes_and_types_are_those_of_the_model() -> None:
    (batch,) = collate([[sample("a", 5, images=1)]], 1, PAD, 1, same_length=False)
    for integers in (batch.input_ids, batch.labels):
        assert (integers.dtype, integers.shape) == (torch.int64, (1, 5))
    assert (batch.pixel_values.dtype, batch.pixel_values.shape) == (torch.float32, (1, 3, 4, 4))


def test_with_same_length_every_micro_batch_is_as_long_as_the_longest() -> None:
    shard = alone([sample("a", 4), sample("b", 11, images=1), sample("c", 5), sample("d", 3)])
    lengths = {same: [b.input_ids.shape for b in collate(shard, 2, PAD, 8, same)] for same in (False, True)}
    assert lengths == {False: [(2, 16), (2, 8)], True: [(2, 16), (2, 16)]}


def label_pairs(batches: list[Batch]) -> list[tuple[str, int, int]]:
    """(record, position, token) of every label that carries loss."""
    return sorted(
        (name, position, label)
        for batch in batches
        for name, row in zip(batch.record_ids, batch.labels.tolist(), strict=True)
        for position, label in enumerate(row)
        if label != IGNORE_INDEX
    )


def test_the_labels_are_the_same_however_the_shard_is_split() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(6, 40, (24,), generator=generator).tolist()
    shard = [sample(f"r{number:02}", length, images=number % 3) for number, length in enumerate(lengths)]
    rows = alone(shard)
    expected = sorted(
        (s.record_id, len(s.labels) - back - 1, int(s.labels[-back])) for s in shard for back in (1, 2)
    )
    for size in (1, 2, 3, 8, 24):
        for same_length in (False, True):
            batches = collate(rows, size, PAD, 8, same_length)
            assert label_pairs(batches) == expected
            assert [len(batch.record_ids) for batch in batches] == [size] * (24 // size)
            assert sum(len(batch.pixel_values) for batch in batches) == 24
            for batch in batches:
                images = int((batch.input_ids == IMAGE_TOKEN_ID).sum())
                assert images == 2 * len(batch.pixel_values)


def test_samples_of_similar_length_share_a_micro_batch() -> None:
    shard = alone([sample(str(length), length) for length in (3, 30, 4, 29, 5, 28)])
    batches = collate(shard, 2, PAD, 1, same_length=False)
    assert [batch.record_ids for batch in batches] == [["30", "29"], ["28", "5"], ["4", "3"]]


def test_a_shard_is_two_blocks_of_memory() -> None:
    batches = collate(
        alone([sample(str(n), 6 + n, images=1) for n in range(8)]), 2, PAD, 4, same_length=False
    )
    integers = {
        tensor.untyped_storage().data_ptr() for batch in batches for tensor in (batch.input_ids, batch.labels)
    }
    pixels = {batch.pixel_values.untyped_storage().data_ptr() for batch in batches}
    assert len(integers) == len(pixels) == 1


def test_packed_samples_are_written_out() -> None:
    rows = [[sample("a", 3)], [sample("b", 5, images=1), sample("c", 5, images=1)]]
    (batch,) = collate(rows, 2, PAD, 4, same_length=False)
    i, x = IMAGE_TOKEN_ID, IGNORE_INDEX
    assert batch.input_ids.tolist() == [
        [100, i, i, 103, 104, 100, i, i, 103, 104, PAD, PAD],
        [100, 101, 102, *[PAD] * 9],
    ]
    # b's last token predicts nothing: c's first is not what follows it
    assert batch.labels.tolist() == [[x, x, 103, 104, x, x, x, 103, 104, x, x, x], [101, 102, *[x] * 10]]
    assert batch.packed_lengths == batch.sample_lengths == [[5, 5], [3]]
    assert (batch.record_ids, batch.num_tokens, batch.num_image_tokens) == (["b", "c", "a"], 13, 4)
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [15.0, 15.0]
    (lone,) = collate([[sample("a", 3)]], 1, PAD, 4, same_length=False)
    assert lone.packed_lengths is None
