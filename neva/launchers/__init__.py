"""Command lines of other systems, told to `neva` as overrides of its own keys."""
