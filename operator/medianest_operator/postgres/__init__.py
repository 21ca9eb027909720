"""Everything that is said to PostgreSQL."""
