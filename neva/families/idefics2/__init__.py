"""Idefics2: its vision tower."""
