"""Vision tower, connector and language model, merged into one."""
