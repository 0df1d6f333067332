"""What is the user's to mend: one base, which the command line prints as one sentence. All else is a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend: what was found, what was expected, what to change.

    Raised anywhere, in a loader worker or on another rank too, it ends the command as one sentence and a non-zero
    status. Several problems of one kind are reported together, a line each.
    """

    exit_code = 1


class ConfigError(UserError):
    """A key, a value or a command that cannot be used."""

    exit_code = 2


class DataError(UserError):
    """A file of records, prompts or answers, or a tokenizer, that cannot be used."""


class SampleError(DataError):
    """A record cannot become a sample: broken file, malformed conversation, nothing left to learn from.

    The one error that `model.data.on_error=skip` may pass over.
    """


class CheckpointError(UserError):
    """A `.nemo`, a training checkpoint or a folder of weights that cannot be read, does not fit, or is not proven."""


class LaunchError(UserError):
    """Processes that do not meet, or do not run the same thing."""
