"""InternViT."""
