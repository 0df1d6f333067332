"""The vision tower of SigLIP."""
