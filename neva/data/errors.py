"""The one error that `model.data.on_error=skip` may pass over."""


class SampleError(ValueError):
    """A record cannot become a sample: broken file, malformed conversation, nothing left to learn from."""
