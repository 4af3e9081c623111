"""Routes every turn of an LLM session so that one budget buys the most quality, and never spends more."""

__version__ = "0.1.0"
