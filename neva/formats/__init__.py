"""Files without models: archives, `.nemo`, safetensors, Hugging Face folders, tokenizers, atomic writes."""
