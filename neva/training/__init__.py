"""Lightning's side of a run: trainer, module, strategy, callbacks; one step reads top to bottom."""
