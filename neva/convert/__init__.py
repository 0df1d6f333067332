"""Weights between Hugging Face folders and `.nemo` files, one mapping for both directions, with proof."""
