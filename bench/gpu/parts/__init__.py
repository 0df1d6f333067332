"""The parts of the GPU report; each module's functions take a `Sheet` and add rows to it."""
