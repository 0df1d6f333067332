"""From YAML and command-line overrides to a checked, complete configuration tree. Imports no torch."""
