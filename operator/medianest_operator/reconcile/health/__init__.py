"""What is wrong with a database that serves: probes, and the one list of findings that everything reads."""
