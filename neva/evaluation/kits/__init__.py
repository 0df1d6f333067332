"""Evaluation kits, each in an environment and a checkout of its own: how they are started, and what they found."""
