"""Orders of an epoch: pure functions of seed, epoch and number of samples."""
