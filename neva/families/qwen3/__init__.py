"""Qwen3: LLaMA with norms on queries and keys."""
