"""A model behind OpenAI's HTTP interface, with a page to show it."""
