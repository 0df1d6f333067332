"""The metrics, one file each: what a single answer is worth, and what all of them come to."""
