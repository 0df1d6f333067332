"""The error of the configuration room, and how it shows values."""


class ConfigError(ValueError):
    """A key or a value that cannot be used: what was found, what was expected, what to change.

    One problem is one line; several problems of one configuration are reported together, a line each.
    """


def as_typed(value: object) -> str:
    """A value of the configuration as one types it: null, true, 8."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
