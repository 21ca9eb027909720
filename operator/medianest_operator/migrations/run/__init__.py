"""One migration run: its steps, and what they share."""
