"""The state of a database's indexes: what is there, what is wrong with it, and the statement that fixes it."""
