"""Qwen3-MoE: Qwen3 with experts."""
