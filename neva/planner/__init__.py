"""Memory of every layout of a number of GPUs, computed from a recipe without building anything."""
