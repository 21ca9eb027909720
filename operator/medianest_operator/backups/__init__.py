"""Backups: where they are kept, how they are taken and how they come back."""
