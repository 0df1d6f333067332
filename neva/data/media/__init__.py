"""Images on their way from a file to `pixel_values`."""
