"""Train, run and convert LLaVA-type vision-language models on Megatron-core, Lightning and Hydra."""

__version__ = "0.1.0"
