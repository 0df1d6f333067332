"""The order of the data: what each rank sees, and where a resumed run continues."""

from typing import Any

import pytest
import torch

from neva.data.global_batch import GlobalBatchSampler
from neva.data.samplers.orders import shuffled

RECORDS, BATCH, STEPS = 53, 12, 11  # 4 steps an epoch, 5 records left over in each


def sampler(**changes: Any) -> GlobalBatchSampler:
    settings: dict[str, Any] = {
        "num_samples": RECORDS,
        "global_batch_size": BATCH,
        "rank": 0,
        "size": 1,
        "consumed_samples": 0,
        "max_steps": STEPS,
        "seed": 7,
        "dataloader_type": "cyclic",
    }
    return GlobalBatchSampler(**(settings | changes))


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
        assert seen == shuffled(RECORDS, 7, epoch)[:48].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("dataloader_type", ["cyclic", "single"])
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
        resumed = [list(sampler(consumed_samples=cut * BATCH, rank=rank, size=size)) for rank in range(size)]
        assert all(len(shard) == STEPS - cut for shard in resumed)
        for step, batch in enumerate(UNBROKEN[cut:]):
            assert [shard[step] for shard in resumed] == [batch[rank::size] for rank in range(size)]


def test_nothing_is_left_behind_the_last_step() -> None:
    done = sampler(consumed_samples=(STEPS + 3) * BATCH)
    assert (len(done), list(done)) == (0, [])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(sampler()) == UNBROKEN
    assert torch.equal(torch.get_rng_state(), state)
    orders = [tuple(shuffled(RECORDS, seed, epoch).tolist()) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)


@pytest.mark.parametrize("dataloader_type", ["single", "sequential"])
def test_single_and_sequential_keep_the_order_of_the_file(dataloader_type: str) -> None:
    batches = list(sampler(dataloader_type=dataloader_type))
    assert batches[0] == list(range(12))
    assert batches[3] == list(range(36, 48))
    assert batches[4:8] == batches[:4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataloader_type": "modality"},
            "dataloader_type is 'modality', expected one of cyclic, single, sequential",
        ),
        ({"num_samples": 11}, "11 records do not fill one global batch; .* at most 11, found 12"),
        ({"size": 5}, "global_batch_size=12 cannot be divided by 5 data-parallel ranks"),
        ({"consumed_samples": 30}, "30 consumed samples are not a whole number of global batches of 12"),
    ],
)
def test_what_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**changes)
