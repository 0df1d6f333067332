"""Parameters, gradients and optimizer state sharded over data-parallel ranks by torch's FSDP."""
