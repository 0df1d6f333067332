"""Worked examples, each a folder that a script or a make target starts."""
