"""Proof that a conversion changed nothing: the same inputs through both models, compared."""
