"""OLMo 2: LLaMA with norms behind attention and feed-forward, and on all queries and keys of a token."""
