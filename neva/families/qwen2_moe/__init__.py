"""Qwen2-MoE: Qwen2 with experts, one of which every token passes."""
