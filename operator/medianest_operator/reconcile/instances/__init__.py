"""The concerns of the servers: which of them run, on what, and who leads."""
