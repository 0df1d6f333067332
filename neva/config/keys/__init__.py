"""Every key of the configuration tree as data: type, range, one line of documentation, or why it is refused."""
