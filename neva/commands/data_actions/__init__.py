"""What `neva data` can do: an action is a module with a SUMMARY line, a `parse` and a `main`."""
