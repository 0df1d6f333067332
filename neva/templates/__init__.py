"""Conversation templates: turns as segments of text, with or without a loss."""
