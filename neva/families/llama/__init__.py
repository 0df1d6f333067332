"""LLaMA, Vicuna, SmolLM2: the family whose layers the other language models have."""
