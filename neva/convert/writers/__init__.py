"""Targets of a conversion: each writes tensors under neva's names as one kind of file or folder."""
