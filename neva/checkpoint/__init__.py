"""Training checkpoints, readable in any layout, and the `.nemo` that a run leaves."""
