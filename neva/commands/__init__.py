"""The verbs of the command line, one module each; a verb is a module with a SUMMARY and a `main`."""
