"""The order of the data: what each rank sees, and where a resumed run continues."""

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neva.data.global_batch import GlobalBatchSampler
from neva.data.lengths import SampleLengths
from neva.data.position import Position, position_after, restored_position, saved_position
from neva.data.samplers.epoch import Epoch
from neva.data.samplers.orders import STORED_SAMPLES, shuffled
from neva.data.samplers.permutation import KeyedPermutation
from neva.errors import ConfigError, DataError
from neva.registry import SAMPLERS

RECORDS, BATCH, STEPS = 53, 12, 11  # 4 steps an epoch, 5 records left over in each


def no_lengths() -> SampleLengths:
    raise AssertionError("this order must not read the records")


FIRST = Epoch(
    number=0,
    seed=7,
    num_samples=RECORDS,
    global_batch_size=BATCH,
    mega_batch_mult=None,
    longest_first=True,
    lengths=no_lengths,
)


def sampler(**changes: Any) -> GlobalBatchSampler:
    """A sampler of `FIRST`, but for what is given of it and of the sampler's own arguments."""
    of_epoch = {name: changes.pop(name) for name in list(changes) if hasattr(FIRST, name)}
    settings: dict[str, Any] = {
        "rank": 0,
        "size": 1,
        "start": Position(),
        "num_steps": STEPS,
        "dataloader_type": "cyclic",
    }
    return GlobalBatchSampler(replace(FIRST, **of_epoch), **(settings | changes))


UNBROKEN = list(sampler())


def test_a_run_goes_on_across_epochs_until_its_last_step() -> None:
    assert len(sampler()) == len(UNBROKEN) == STEPS
    assert sampler().steps_per_epoch == 4
    assert all(len(batch) == BATCH for batch in UNBROKEN)


def test_an_epoch_shows_no_record_twice_and_leaves_out_what_does_not_fill_a_batch() -> None:
    for epoch in range(2):
        seen = [index for batch in UNBROKEN[epoch * 4 : epoch * 4 + 4] for index in batch]
        assert len(set(seen)) == len(seen) == 48
        assert set(seen) <= set(range(RECORDS))
        assert seen == shuffled(replace(FIRST, number=epoch))[:48].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("dataloader_type", ["cyclic", "sequential"])
def test_the_ranks_together_consume_the_global_batch(size: int, dataloader_type: str) -> None:
    whole = list(sampler(dataloader_type=dataloader_type))
    shards = [list(sampler(rank=rank, size=size, dataloader_type=dataloader_type)) for rank in range(size)]
    for step, batch in enumerate(whole):
        assert [len(shard[step]) for shard in shards] == [BATCH // size] * size
        assert sorted(index for shard in shards for index in shard[step]) == sorted(batch)
        for rank, shard in enumerate(shards):
            assert shard[step] == batch[rank::size]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_resuming_anywhere_with_any_number_of_ranks_equals_the_unbroken_run(size: int) -> None:
    for cut in range(STEPS + 1):
        start = position_after(cut, RECORDS, BATCH)
        resumed = [
            list(sampler(start=start, num_steps=STEPS - cut, rank=rank, size=size)) for rank in range(size)
        ]
        assert all(len(shard) == STEPS - cut for shard in resumed)
        for step, batch in enumerate(UNBROKEN[cut:]):
            assert [shard[step] for shard in resumed] == [batch[rank::size] for rank in range(size)]


def test_nothing_is_left_behind_the_last_step() -> None:
    done = sampler(num_steps=-3)
    assert (len(done), list(done)) == (0, [])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(sampler()) == UNBROKEN
    assert torch.equal(torch.get_rng_state(), state)
    epochs = [replace(FIRST, seed=seed, number=number) for seed in (0, 1, 2) for number in (0, 1, 2)]
    orders = [tuple(shuffled(epoch).tolist()) for epoch in epochs]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)


def test_sequential_keeps_the_order_of_the_file() -> None:
    batches = list(sampler(dataloader_type="sequential"))
    assert batches[0] == list(range(12))
    assert batches[3] == list(range(36, 48))
    assert batches[4:8] == batches[:4]


def test_single_is_sequential_for_one_pass_alone() -> None:
    unbroken = list(sampler(dataloader_type="single", num_steps=4))
    assert unbroken == list(sampler(dataloader_type="sequential", num_steps=4))
    start = Position(0, 24, BATCH)
    assert list(sampler(dataloader_type="single", num_steps=2, start=start)) == unbroken[2:]
    smaller = sampler(dataloader_type="single", num_steps=14, start=start, global_batch_size=2)
    assert sum(smaller, []) == list(range(24, 52))
    with pytest.raises(
        ConfigError,
        match=r"single goes through the 53 records once, which leaves 2 steps of 3; lower .*, or use sequential",
    ):
        sampler(dataloader_type="single", num_steps=3, start=start)
    with pytest.raises(ConfigError, match="leaves 0 steps of 1"):
        sampler(dataloader_type="single", num_steps=1, start=Position(1, 0, BATCH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataloader_type": "random"},
            "'random' is not a sampler that neva knows; expected one of .*modality",
        ),
        ({"num_samples": 11}, "11 records do not fill one global batch; .* at most 11, found 12"),
        ({"size": 5}, "global_batch_size=12 cannot be divided by 5 data-parallel ranks"),
    ],
)
def test_what_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


def in_file_order(
    num_samples: int, batch_size: int, start: Position, num_steps: int
) -> tuple[list[int], Position]:
    """The indices of some steps, and the position behind them."""
    found = sampler(
        num_samples=num_samples,
        global_batch_size=batch_size,
        start=start,
        num_steps=num_steps,
        dataloader_type="sequential",
    )
    indices = [index for batch in found for index in batch]
    for _ in range(num_steps):
        start = found.behind(start)
    return indices, start


def test_another_batch_size_goes_on_with_the_next_sample() -> None:
    before, position = in_file_order(40, 4, Position(), 5)
    after, end = in_file_order(40, 2, position, 9)
    assert before == list(range(20)) and after == list(range(20, 38))
    assert end == Position(0, 38, 4)


def test_another_batch_size_goes_on_within_a_later_epoch() -> None:
    before, position = in_file_order(10, 4, Position(), 3)
    assert before == [*range(8), *range(4)] and position == Position(1, 4, 4)  # 8 and 9 did not fill a batch
    after, _ = in_file_order(10, 2, position, 5)
    assert after == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    larger, _ = in_file_order(10, 7, position, 2)
    assert larger == [*range(7), *range(7)]  # 6 samples are left of the epoch


DATA = {
    "records": 40,
    "content": "9 bytes, sha256 0",
    "datasets_exclude": [],
    "dataloader_type": "cyclic",
    "seed": 1,
}


def test_data_that_changed_is_refused_or_begins_an_epoch_of_its_own() -> None:
    saved = saved_position(Position(2, 12, 6), DATA)
    assert restored_position(saved, 0, DATA, 4, "fail") == Position(2, 12, 6)
    del saved["batch_size"]  # as checkpoints were before orders depended on it
    assert restored_position(saved, 0, DATA, 4, "fail") == Position(2, 12)
    appended = {**DATA, "records": 44, "content": "11 bytes, sha256 1"}
    with pytest.raises(
        DataError,
        match=r"seen 12 samples of \(records was 40 and is 44, content was 9 bytes.*on_change=new_epoch",
    ):
        restored_position(saved, 0, appended, 4, "fail")
    assert restored_position(saved, 0, appended, 4, "new_epoch") == Position(3)
    with pytest.raises(DataError, match="seed was 1 and is 2"):
        restored_position(saved, 0, {**DATA, "seed": 2}, 4, "fail")


def test_a_checkpoint_without_a_position_has_it_from_its_consumed_samples() -> None:
    assert restored_position(None, 0, DATA, 4, "fail") == Position(0, 0, 4)
    assert restored_position(None, 88, DATA, 4, "fail") == Position(2, 8, 4)
    with pytest.raises(
        ConfigError, match="30 consumed samples are not a whole number of global batches of 12"
    ):
        restored_position(None, 30, DATA, 12, "fail")


@pytest.mark.parametrize("drop_last", [True, False])
def test_without_drop_last_the_next_epoch_fills_the_last_batch(drop_last: bool) -> None:
    found = [
        index
        for batch in sampler(num_steps=RECORDS, global_batch_size=6, drop_last=drop_last)
        for index in batch
    ]
    if drop_last:
        assert len(set(found[:48])) == 48 and len(set(found[48:96])) == 48
        return
    for epoch in range(6):  # 53 x 6 indices are 53 global batches of 6
        order = shuffled(replace(FIRST, number=epoch, global_batch_size=6)).tolist()  # type: ignore[attr-defined]
        assert found[RECORDS * epoch : RECORDS * (epoch + 1)] == order
    assert len(found) == 6 * RECORDS


def test_without_drop_last_a_run_resumes_anywhere_with_any_batch_size() -> None:
    whole = [
        index for batch in sampler(num_steps=30, global_batch_size=6, drop_last=False) for index in batch
    ]
    before = sampler(num_steps=9, global_batch_size=6, drop_last=False)
    start = before.start
    for _ in range(9):
        start = before.behind(start)
    assert start == Position(1, 1, 6)
    after = sampler(start=start, num_steps=12, global_batch_size=9, drop_last=False, rank=1, size=3)
    for step, batch in enumerate(after):
        assert batch == whole[54 + 9 * step : 63 + 9 * step][1::3]


@given(st.integers(1, 5000), st.integers(0, 2**32), st.data())
def test_a_keyed_permutation_holds_every_index_once_whatever_part_is_asked(
    num_samples: int, key: int, data: st.DataObject
) -> None:
    order = KeyedPermutation(num_samples, str(key))
    whole = order[:num_samples]
    assert torch.equal(whole.sort().values, torch.arange(num_samples))
    first = data.draw(st.integers(0, num_samples))
    end = data.draw(st.integers(first, num_samples + 3))
    assert torch.equal(order[first:end], whole[first:end])


def test_a_keyed_permutation_is_as_random_as_a_stored_one() -> None:
    """Of 2^16 + 1: fixed points, neighbours that stay neighbours, and places by index, against their expectations."""
    size = 2**16 + 1
    for seed in range(3):
        order = KeyedPermutation(size, f"{seed}:0")[:size]
        assert int((order == torch.arange(size)).sum()) < 8  # expected 1
        assert int((order.diff() == 1).sum()) < 8  # expected 1
        # cells of a 16 x 16 table of place and index: 256 each, chi squared of 225 degrees of freedom
        cells = torch.arange(size) * 16 // size * 16 + order * 16 // size
        counts = torch.bincount(cells, minlength=256).double()
        assert 150 < float(((counts - size / 256) ** 2 / (size / 256)).sum()) < 310
    assert not torch.equal(KeyedPermutation(size, "0:0")[:9], KeyedPermutation(size, "1:0")[:9])


def test_an_order_of_many_samples_is_not_stored_and_no_checkpoint_of_a_stored_one_goes_on_with_it() -> None:
    many = replace(FIRST, num_samples=10**8)
    tracemalloc.start()
    found = list(GlobalBatchSampler(many, 1, 3, Position(), 20, "cyclic"))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert all(len(batch) == 4 and min(batch) >= 0 and max(batch) < 10**8 for batch in found)
    identity = SAMPLERS["cyclic"].identity
    assert identity(10**8) == {"permutation": "keyed"} and identity(STORED_SAMPLES) == {}
    saved = saved_position(Position(0, 40, 4), DATA)
    with pytest.raises(DataError, match="permutation was None and is keyed"):
        restored_position(saved, 0, DATA | identity(10**8), 4, "fail")
