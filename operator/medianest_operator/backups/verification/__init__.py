"""Restoring a backup into a throwaway server, and comparing."""
