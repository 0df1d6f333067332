"""DINOv3."""
