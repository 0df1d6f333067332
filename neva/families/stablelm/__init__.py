"""StableLM: LLaMA with centred norms, and positions in a quarter of each head."""
