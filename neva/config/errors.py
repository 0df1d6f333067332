"""The error of the configuration room."""


class ConfigError(ValueError):
    """A key or a value that cannot be used: what was found, what was expected, what to change.

    One problem is one line; several problems of one configuration are reported together, a line each.
    """
