"""Optimizer, learning rate schedule and what the optimizer keeps of each parameter."""
