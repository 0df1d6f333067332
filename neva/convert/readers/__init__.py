"""Sources of a conversion: each opens one kind of file or folder as tensors under neva's names."""
