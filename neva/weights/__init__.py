"""From tensors of files, read lazily, to the shards of this rank's parameters."""
