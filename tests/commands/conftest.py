"""What the tests of the commands share: a dry run makes process groups of its own."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_groups() -> None:
    """Leaves the groups of tests that the same process ran before."""
    if "neva.distributed.groups" in sys.modules:
        sys.modules["neva.distributed.groups"].destroy()
