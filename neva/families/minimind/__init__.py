"""MiniMind (github.com/jingyaogong/minimind): LLaMA, or Qwen3, under another name; exported as one of the two."""
