from tests.megatron import single_process  # noqa: F401
