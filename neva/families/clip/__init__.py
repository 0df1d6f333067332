"""The vision tower of CLIP."""
