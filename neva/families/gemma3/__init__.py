"""Gemma 3, the language model: Gemma 2 with norms on queries and keys, and a RoPE of its own in windows."""
