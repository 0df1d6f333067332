"""What the processes of a run hear from one that fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from neva.distributed.monitor import FailureMonitor
from neva.errors import SampleError


@pytest.fixture
def monitors() -> Iterator[list[FailureMonitor]]:
    """Three ranks in this process; the first one speaks for all, as on one machine."""
    store = dist.HashStore()
    ranks = [FailureMonitor(rank, store, "localhost", logs=rank == 0) for rank in range(3)]
    yield ranks
    for monitor in reversed(ranks):
        monitor.close()


def test_what_the_user_can_mend_is_said_once_and_known_to_all(
    monitors: list[FailureMonitor], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monitors[1].report(SampleError("data.json, record 3: no answer"))
    assert all(monitor.failed.wait(30) for monitor in monitors)
    sentence = f"{monitors[1].place}: data.json, record 3: no answer"
    assert [str(monitor.user_error) for monitor in monitors] == [sentence] * 3
    assert [monitor.user_error and monitor.user_error.exit_code for monitor in monitors] == [1, 1, 1]
    assert capfd.readouterr().err == f"neva: {sentence}\n"
    assert not caplog.records


def test_the_first_failure_counts_and_another_error_is_logged(
    monitors: list[FailureMonitor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        monitors[2].report(KeyError("id"))
        assert all(monitor.failed.wait(30) for monitor in monitors)
        monitors[0].report(SampleError("data.json, record 3: no answer"))
    assert [monitor.user_error for monitor in monitors] == [None] * 3
    assert caplog.messages == [f"{monitors[2].name} failed: KeyError: 'id'; all processes stop"]
