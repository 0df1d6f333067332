"""Model families: sizes, their Hugging Face configuration, and the names of their tensors."""
