import pytest

from tests.megatron import free_port, single_process  # noqa: F401


@pytest.fixture
def megatron(single_process):  # noqa: F811
    """Megatron's process groups on one process."""
