"""What a rank says when the others do not come, run something else, or are lost."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from neva.config.load import load
from neva.distributed import consistency, error_summary, rendezvous
from neva.errors import ConfigError
from neva.formats import digest
from tests.megatron import free_ports


def test_a_first_node_that_does_not_answer_is_named_after_the_stated_time() -> None:
    port = free_ports(1)[0]
    begin = time.monotonic()
    with pytest.raises(
        ConfigError, match=rf"could not reach .* 127\.0\.0\.1:{port} within 1 s \(Connection refused\)"
    ):
        rendezvous.rendezvous_store(1, 2, "127.0.0.1", port, timeout_s=1.0)
    assert 1.0 <= time.monotonic() - begin < 3.0
    with pytest.raises(
        ConfigError, match=r"could not reach .* no-such-host\.invalid:6000 within 0\.5 s \(.*[Nn]ame"
    ):
        rendezvous.await_port("no-such-host.invalid", 6000, timeout_s=0.5)


def test_ranks_that_do_not_come_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "")
    monkeypatch.setenv("MASTER_PORT", "")
    port = free_ports(1)[0]
    with pytest.raises(
        ConfigError, match=rf"not all 3 processes met at 127\.0\.0\.1:{port} within 1 s \(.*1/3"
    ):
        rendezvous.rendezvous_store(0, 3, "127.0.0.1", port, timeout_s=1.0)


def test_a_taken_port_is_refused_by_its_number() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} of .* is taken by another program"):
            rendezvous.rendezvous_store(0, 2, "127.0.0.1", port, timeout_s=1.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user for a moment")
def test_a_port_of_the_system_is_refused_by_its_number() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first == 0:
        pytest.skip("every user may have every port here")
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"MASTER_PORT=1 of .* cannot be used \(Permission denied\)"):
            rendezvous.refuse_taken_port(1)
    finally:
        os.seteuid(0)


def test_a_node_reads_each_data_file_once_to_compare_and_sends_one_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("data.json", "held_out.json")]
    for file in files:
        file.write_text(json.dumps([{"id": number, "text": "x" * 2000} for number in range(2000)]))
    cfg = load("llava_7b_pretrain", [f"model.data.data_path={files[0]}", f"model.data.validation={files[1]}"])
    facts, read = [], []
    for local_rank in [*range(8), 0]:  # and the first of another node
        digest._digest.cache_clear()  # each rank is a process
        before = bytes_read()
        facts.append(consistency.fingerprint(cfg, reads_files=local_rank == 0))
        read.append(bytes_read() - before)
    code = read[1]  # neva's own, on every rank
    data, held_out = (file.stat().st_size for file in files)
    assert max(read[1:8]) == code < 4_000_000
    # beside the data there are its index, which is made and read: 0.1 MB
    assert data + held_out <= read[0] - code < 1.03 * (data + held_out)
    assert held_out <= read[8] - code < 1.03 * held_out, "the index, and with it the digest, is there already"
    sent = []
    monkeypatch.setattr(consistency, "gathered", lambda mine: sent.append(mine) or [mine] * 8)
    consistency.compare_ranks(facts[0])
    assert [len(each) for each in sent[0]] == [64, 64] and len(sent) == 1


def bytes_read() -> int:
    """What this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_data_code_and_configuration_are_among_the_facts(tmp_path: Path) -> None:
    cfg = load("llava_7b_pretrain", [f"model.data.data_path={tmp_path}/data.json"])
    (tmp_path / "data.json").write_text("[1]")
    first = consistency.fingerprint(cfg)
    assert first == consistency.fingerprint(OmegaConf.create(OmegaConf.to_container(cfg)))  # type: ignore[arg-type]
    (tmp_path / "data.json").write_text("[2]")
    cfg.model.optim.lr = 0.5
    second = consistency.fingerprint(cfg)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"key model.optim.lr", f"content of {tmp_path}/data.json"}
    assert {"neva's code", "torch", "megatron-core", "Python"} <= first.keys()
    beside = consistency.fingerprint(cfg, reads_files=False)
    unread = {name for name in beside if beside[name] is None}
    assert f"content of {tmp_path}/data.json" in unread and beside == second | dict.fromkeys(unread)


def test_the_sentence_names_the_first_rank_that_differs_and_counts_the_rest() -> None:
    ours, theirs = {"torch": "2.4", "key a": "1"}, {"torch": "2.5", "key a": "1"}
    sentence = consistency.disagreement([ours, ours, theirs, theirs], ["h1", "h1", "h2", "h2"])
    assert sentence.startswith(
        "rank 2 on h2 differs from rank 0 on h1 (so do 1 other ranks): torch is 2.5 there and 2.4 on rank 0; start"
    )
    sentence = consistency.disagreement([ours, {"key b": "2"}], ["h1", "h2"])
    assert "key a is absent there and 1 on rank 0, and 2 more" in sentence


def test_a_rank_that_read_no_file_agrees_with_what_the_first_of_its_node_read() -> None:
    ours: dict[str, str | None] = {"key a": "1", "content of data": "x"}
    beside, elsewhere = ours | {"content of data": None}, ours | {"content of data": "y"}
    sentence = consistency.disagreement([ours, beside, elsewhere, beside], ["h1", "h1", "h2", "h2"])
    assert sentence.startswith(
        "rank 2 on h2 differs from rank 0 on h1: content of data is y there and x on rank 0;"
    )
    others = consistency.disagreement([ours, beside | {"key a": "2"}], ["h1", "h1"])
    assert others.startswith("rank 1 on h1 differs from rank 0 on h1: key a is 2 there and 1 on rank 0;")


@pytest.mark.usefixtures("single_process")
def test_an_error_of_a_collective_is_described_with_operation_group_and_place() -> None:
    with pytest.raises(RuntimeError) as raised:
        dist.recv(torch.zeros(1), src=0)  # there is no other process, so gloo refuses
    place = r"`dist\.recv\(torch\.zeros\(1\), src=0\).*` at distributed/test_rendezvous\.py:\d+"
    assert re.match(
        rf"recv over default_pg \[0\], {place}: RuntimeError: .+", error_summary.describe(raised.value)
    )


def test_another_error_is_described_by_itself() -> None:
    assert error_summary.describe(KeyError("id")) == "KeyError: 'id'"
    assert error_summary.describe(ValueError("first\nsecond")) == "ValueError: first"
    assert error_summary.describe(RuntimeError()) == "RuntimeError"
    assert error_summary.is_secondary(RuntimeError("Connection closed by peer [10.77.0.2]:4711"))
    assert not error_summary.is_secondary(ValueError("the dog ate the batch"))
