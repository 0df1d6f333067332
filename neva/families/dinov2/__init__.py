"""DINOv2 as a vision tower."""
