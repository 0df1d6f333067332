"""Orders by modality and length: the rule, against a slow version of it, and what a run makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from neva.data.global_batch import GlobalBatchSampler
from neva.data.lengths import SampleLengths, measure
from neva.data.loader import train_loader
from neva.data.position import Position, data_identity, restored_position, saved_position
from neva.data.samplers import groups
from neva.data.samplers.epoch import Epoch
from neva.data.sources.source import open_source
from neva.errors import DataError
from neva.registry import SAMPLERS
from tests.conftest import conversation, image_record, write_records
from tests.data import tokenizers
from tests.data.test_dataset import VISION, model_cfg, write_dataset

IMAGE_TOKENS = 5
GROUPED = ("modality", "length_grouped")


class Pass(NamedTuple):
    """What one drawn pass over the data is made of: a word count and a number of images for each sample."""

    samples: list[tuple[int, int]]
    batch_size: int
    multiple: int | None
    seed: int
    number: int
    longest_first: bool

    def epoch(self) -> Epoch:
        words, images = zip(*self.samples, strict=True)
        lengths = SampleLengths(np.array(words, np.int32), np.array(images, np.uint16), IMAGE_TOKENS)
        return Epoch(
            number=self.number,
            seed=self.seed,
            num_samples=len(self.samples),
            global_batch_size=self.batch_size,
            mega_batch_mult=self.multiple,
            longest_first=self.longest_first,
            lengths=lambda: lengths,
        )

    def order(self, name: str) -> list[int]:
        return SAMPLERS[name].indices(self.epoch()).tolist()

    def length(self, name: str, index: int) -> int:
        words, images = self.samples[index]
        return words if name == "modality" else words + IMAGE_TOKENS * images

    def kind(self, name: str, index: int) -> bool:
        return name == "modality" and self.samples[index][1] > 0


passes = st.builds(
    Pass,
    samples=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    multiple=st.none() | st.integers(1, 4),
    seed=st.integers(0, 3),
    number=st.integers(0, 3),
    longest_first=st.booleans(),
)
MIXED = Pass([(n % 9, n % 3) for n in range(50)], 3, 2, seed=1, number=0, longest_first=True)


def by_the_rule(given: Pass, name: str) -> list[int]:
    """The order as the rule describes it, with lists alone; only the permutations are drawn as `neva` draws them."""
    generator = given.epoch().generator()
    multiple = given.multiple
    if multiple is None:
        multiple = len(given.samples) // (4 * given.batch_size)
        multiple = 50 if multiple > 50 else 1 if multiple == 0 else multiple
    size = multiple * given.batch_size
    whole: list[list[int]] = []
    last: list[int] = []
    for kind in (True, False):
        mine = [index for index in range(len(given.samples)) if given.kind(name, index) is kind]
        mine = [mine[number] for number in torch.randperm(len(mine), generator=generator).tolist()]
        while len(mine) >= size:
            group, mine = mine[:size], mine[size:]
            whole.append(sorted(group, key=lambda index: given.length(name, index), reverse=True))
        last += mine
    last.sort(key=lambda index: given.length(name, index), reverse=True)
    whole = [whole[number] for number in torch.randperm(len(whole), generator=generator).tolist()]
    if given.longest_first and whole:
        _longest_to_front(given, name, whole, last)
    return [index for group in [*whole, last] for index in group]


def _longest_to_front(given: Pass, name: str, whole: list[list[int]], last: list[int]) -> None:
    kinds = {given.kind(name, group[0]) for group in whole}
    candidates = [group[0] for group in whole] + [index for index in last if given.kind(name, index) in kinds]
    longest = max(candidates, key=lambda index: given.length(name, index))
    if longest in last:
        home = next(group for group in whole if given.kind(name, group[0]) == given.kind(name, longest))
        place = last.index(longest)
        home[0], last[place] = longest, home[0]
    home = next(group for group in whole if group[0] == longest)
    place = whole.index(home)
    whole[0], whole[place] = whole[place], whole[0]


@pytest.mark.parametrize("name", GROUPED)
@given(drawn=passes)
@example(drawn=MIXED)
def test_orders_are_those_of_the_rule(name: str, drawn: Pass) -> None:
    order = drawn.order(name)
    assert order == by_the_rule(drawn, name)
    assert sorted(order) == list(range(len(drawn.samples)))
    torch.manual_seed(99)
    assert order == drawn.order(name)


@given(drawn=passes)
@example(drawn=MIXED)
def test_batches_are_of_one_modality_but_for_the_last_group(drawn: Pass) -> None:
    order = drawn.order("modality")
    size = drawn.epoch().group_size
    whole = sum(
        len([None for _, images in drawn.samples if (images > 0) is kind]) // size for kind in (True, False)
    )
    batch = drawn.batch_size
    for begin in range(0, whole * size, batch):
        kinds = {drawn.kind("modality", index) for index in order[begin : begin + batch]}
        assert len(kinds) == 1


@pytest.mark.parametrize("name", GROUPED)
@given(drawn=passes)
def test_the_longest_comes_first_unless_its_modality_fills_no_group(name: str, drawn: Pass) -> None:
    drawn = drawn._replace(longest_first=True)
    order, size = drawn.order(name), drawn.epoch().group_size
    kinds = [drawn.kind(name, index) for index in range(len(drawn.samples))]
    fills = {kind for kind in (True, False) if kinds.count(kind) >= size} or {True, False}
    lengths = [drawn.length(name, index) for index in order if kinds[index] in fills]
    assert drawn.length(name, order[0]) == max(lengths)


def test_the_rules_own_mistakes_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap_of_samples(group: Any, last: Any, length: Any, modality: Any) -> None:
        longest = int(np.argmax(length[group[:, 0]]))
        group[0, 0], group[longest, 0] = group[longest, 0], group[0, 0]

    monkeypatch.setattr(groups, "_move_longest_to_front", swap_of_samples)
    found = [MIXED._replace(seed=seed) for seed in range(4)]
    assert any(drawn.order("modality") != by_the_rule(drawn, "modality") for drawn in found)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    for name in GROUPED:
        orders = {
            tuple(MIXED._replace(seed=seed, number=n).order(name)) for seed in range(3) for n in range(3)
        }
        assert len(orders) == 9


def test_sorted_groups_are_padded_less() -> None:
    drawn = Pass([(n * 7919 % 97, n % 2) for n in range(400)], 4, None, 0, 0, longest_first=False)

    def padded(order: list[int], name: str) -> int:
        batches = [
            [drawn.length(name, index) for index in order[begin : begin + 4]] for begin in range(0, 400, 4)
        ]
        return sum(4 * max(batch) - sum(batch) for batch in batches)

    for name in GROUPED:
        assert 4 * padded(drawn.order(name), name) < padded(drawn.order("cyclic"), name)


def consumed(first: Epoch, start: Position, steps: int, rank: int = 0, size: int = 1) -> Any:
    """The indices of some steps of one rank, batch by batch, and the position behind them."""
    sampler = GlobalBatchSampler(first, rank, size, start, steps, "modality")
    batches = list(sampler)
    for _ in range(steps):
        start = sampler.behind(start)
    return batches, start


@given(cut=st.integers(0, 12), smaller=st.sampled_from([1, 2, 3, 4, 6]))
def test_another_batch_size_consumes_what_is_left_of_the_epoch_once(cut: int, smaller: int) -> None:
    first = replace(MIXED.epoch(), global_batch_size=4)
    before, position = consumed(first, Position(), cut)
    left = (50 - 4 * cut) // smaller
    after, end = consumed(replace(first, global_batch_size=smaller), position, left)
    whole = SAMPLERS["modality"].indices(first if cut else replace(first, global_batch_size=smaller)).tolist()
    assert sum(before, []) + sum(after, []) == whole[: 4 * cut + left * smaller]
    following, _ = consumed(replace(first, global_batch_size=smaller), end, 1)
    next_epoch = SAMPLERS["modality"].indices(replace(first, number=1, global_batch_size=smaller)).tolist()
    assert following == [next_epoch[:smaller]]


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_share_a_batch_of_one_modality(size: int) -> None:
    first = replace(MIXED.epoch(), global_batch_size=4)
    whole, _ = consumed(first, Position(), 30)
    shards = [consumed(first, Position(), 30, rank, size)[0] for rank in range(size)]
    for step, batch in enumerate(whole):
        assert sorted(index for shard in shards for index in shard[step]) == sorted(batch)


# Lengths


def test_lengths_are_words_and_images_of_the_records(tmp_path: Path) -> None:
    records = [
        image_record(0, "<image>\nWhat  is it?", "A red circle."),  # 4 words and 3
        {"id": "broken"},
        {"conversations": conversation("Why?", "No reason.")},
        {"images": ["0.png", "1.png"], "messages": [{"role": "user", "content": "<image> <image>"}]},
        {"conversations": 3},
    ]
    write_records(tmp_path / "data.json", records)
    found = measure(open_source(tmp_path / "data.json"), IMAGE_TOKENS)
    assert found.words.tolist() == [
        7,
        3,
        3,
        2,
        7,
    ]  # a broken record is as long as the one that is read for it
    assert found.images.tolist() == [1, 0, 0, 2, 1]
    assert found.positions.tolist() == [12, 3, 3, 12, 12]
    assert found.words.itemsize + found.images.itemsize == 6


def test_records_are_measured_once_for_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, 14)
    calls = []
    monkeypatch.setattr("neva.data.loader.measure", lambda *args: calls.append(args) or measure(*args))
    cfg = model_cfg(tmp_path, dataloader_type="modality")
    loader = train_loader(cfg, VISION, tokenizers.llama_like(tmp_path / "tokenizer"), 0, 1, 9, seed=3)
    assert calls == []
    batches = [sum((batch.record_ids for batch in step), []) for step in loader]
    assert len(calls) == 1
    texts = {f"id-{number}" for number in (2, 5, 8, 11)}
    assert sorted(len(texts & set(batch)) for batch in batches[:3]) == [0, 0, 4]


@pytest.mark.parametrize("name", GROUPED)
def test_a_run_does_not_resume_with_other_groups(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, 14)
    records = open_source(tmp_path / "data.json")
    before = model_cfg(tmp_path, dataloader_type=name)
    saved = saved_position(Position(0, 4, 4), data_identity(before, 3, records))
    for changes in ({"mega_batch_mult": 2}, {"data": {"longest_first": False}}):
        now = data_identity(OmegaConf.merge(before, changes), 3, records)  # type: ignore[arg-type]
        with pytest.raises(
            DataError, match="mega_batch_mult was None and is 2|longest_first was True and is False"
        ):
            restored_position(saved, 4, now, 4, "fail")
    assert "longest_first" not in data_identity(model_cfg(tmp_path), 3, records)  # where it changes nothing
