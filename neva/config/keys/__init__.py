"""Every key of the configuration tree as data: type, range, a line of documentation, or why it is refused."""
