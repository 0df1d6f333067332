"""A broken sample on one rank changes nothing in what the ranks do together, and ends a run in one sentence."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neva.config.language import language_config_of
from neva.config.load import load
from neva.config.tower import vision_config_of
from neva.data.loader import train_loader
from neva.data.tokenizer import load_tokenizer
from neva.distributed import groups
from neva.distributed.megatron_ddp import data_parallel
from neva.model.build import build_model
from neva.training.step import run_global_batch
from tests.distributed.test_failure import TRAINING, TWO, run
from tests.megatron import free_ports, meetings, ranks_tell
from tests.training.conftest import colours  # noqa: F401

RECORDS, STEPS = 40, 20


def with_faults(folder: Path, colours: list[str], share: float) -> list[str]:  # noqa: F811
    """Overrides for records of which a share, drawn at random, is broken in one of several ways."""
    images = Path(next(word for word in colours if "image_folder" in word).partition("=")[2])
    (images / "torn.png").write_bytes((images / "1.png").read_bytes()[:50])
    draw, made = random.Random(5), []
    whole = json.loads((images / "data.json").read_text())
    faults: list[dict[str, Any]] = [
        {"image": "absent.png"},
        {"image": "torn.png"},
        {"conversations": 3},
        {"conversations": [{"from": "human", "value": "is it?"}]},
        {"image": ["1.png", "2.png"]},
    ]
    for number in range(RECORDS):
        record = {**draw.choice(whole), "id": f"r{number}"}
        made.append(record | draw.choice(faults) if draw.random() < share else record)
    (folder / "data.json").write_text(json.dumps(made))
    return [f"model.data.data_path={folder}/data.json"]


def worker(rank: int, port: int, overrides: list[str], results: Any) -> None:
    """Trains on this rank's share and tells, step by step, its micro batches and how many collectives there were."""
    torch.set_num_threads(1)
    for _ in zip(range(1), meetings(rank, 2, port), strict=False):
        groups.init_model_parallel(groups.ParallelSizes(), seed=1)
        model_cfg = load("quickstart_finetune", overrides).model
        vision, language = vision_config_of(model_cfg), language_config_of(model_cfg)
        (chunk,) = data_parallel([build_model(vision, language, "mlp2x_gelu").train()])
        tokenizer = load_tokenizer(model_cfg.tokenizer)
        told = []
        for batch in train_loader(model_cfg, vision, tokenizer, rank, 2, STEPS, seed=3):
            chunk.zero_grad_buffer()
            loss = run_global_batch([chunk], batch, torch.device("cpu"))
            ids = [name for micro in batch for name in micro.record_ids]
            told.append((loss, [len(micro.input_ids) for micro in batch], collectives(), ids))
        results.put((rank, told))


def collectives() -> int:
    """Operations that this process has begun in all of its groups."""
    return sum(group._get_sequence_number_for_group() for group in dist.distributed_c10d._world.pg_map)


def test_random_faults_on_one_rank_or_the_other_leave_every_step_the_same(
    tmp_path: Path,
    colours: list[str],  # noqa: F811
) -> None:
    faulty = with_faults(tmp_path, colours, share=0.4)
    skip = ["model.data.on_error=skip", "model.data.max_skipped=0.9", "model.global_batch_size=8"]
    overrides = [*colours, *faulty, *skip, "trainer.devices=2"]
    first, second = (told for _, told in sorted(ranks_tell(worker, 2, 2, free_ports(1)[0], overrides)))
    assert len(first) == len(second) == STEPS
    for (loss, sizes, count, ids), (other_loss, other_sizes, other_count, other_ids) in zip(
        first, second, strict=True
    ):
        assert loss == other_loss and loss.num_label_tokens > 0
        assert sizes == other_sizes == [2, 2]
        assert count == other_count
        assert len(ids) == len(other_ids) == 4
    steps = [count for _, _, count, _ in first]
    assert len({after - before for before, after in zip(steps, steps[1:], strict=False)}) == 1


def test_a_run_that_may_not_skip_ends_with_the_record_in_one_line(tmp_path: Path, colours: list[str]) -> None:  # noqa: F811
    images = Path(next(word for word in colours if "image_folder" in word).partition("=")[2])
    records = json.loads((images / "data.json").read_text()) * 8
    (images / "torn_too.png").write_bytes((images / "1.png").read_bytes()[:50])
    # which no look before training decodes
    records[37] = {**records[1], "id": "torn one", "image": "torn_too.png"}
    (tmp_path / "data.json").write_text(json.dumps(records))
    order = [f"model.data.data_path={tmp_path}/data.json", "model.data.dataloader_type=sequential"]
    code, log = run(TRAINING, tmp_path, [*colours, *TWO, *order, "model.global_batch_size=20"])
    assert code == 1
    said = [line for line in log.splitlines() if line.startswith("neva: ")]
    assert len(said) == 1 and "Traceback" not in log
    assert re.search(
        r"rank 1 .*data\.json, record 37 \(id 'torn one'\): image file .* cannot be decoded", said[0]
    )
