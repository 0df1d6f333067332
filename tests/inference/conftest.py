from tests.megatron import free_port, single_process  # noqa: F401
