"""How good a model's answers are: scores of our own, and those of evaluation kits, in one file a model."""
