"""Mixtral: Mistral with experts, and the names and sizes of experts that the other families share."""
