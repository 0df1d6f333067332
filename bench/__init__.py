"""Measurements: neva beside other implementations, and on a GPU."""
