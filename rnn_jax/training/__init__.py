"""Training loops and what they leave on disk."""
