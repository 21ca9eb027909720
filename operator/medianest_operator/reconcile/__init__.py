"""One module a concern: observe reads, build is pure, apply writes. `database.py` holds the order."""
