"""The vision tower of SigLIP 2 NaFlex."""
