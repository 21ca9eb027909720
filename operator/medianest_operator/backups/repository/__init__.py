"""The places that hold backups, and what lies there."""
