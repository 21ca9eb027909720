"""Backups by pg_dump: taking them, and bringing them back."""
