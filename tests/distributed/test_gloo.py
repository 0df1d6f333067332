"""Groups of gloo share a network device, whose thread wakes a hundred times a second."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from tests.megatron import single_process  # noqa: F401


def loops() -> int:
    """Threads of this process that poll a device of gloo."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("gloo_tcp_loop")


def test_further_groups_add_no_thread_that_polls(single_process: None) -> None:  # noqa: F811
    before = loops()
    assert before > 0
    groups = [dist.new_group([0], backend="gloo") for _ in range(3)]
    assert loops() == before
    for group in groups:
        dist.destroy_process_group(group)
