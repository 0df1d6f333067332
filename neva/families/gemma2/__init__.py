"""Gemma 2: norms around each part of a layer, windows in every other layer, and soft caps."""
