"""From the tower's features to the language model's embeddings, one module a kind."""
