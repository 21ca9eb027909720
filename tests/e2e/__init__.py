"""A real Kubernetes, a real PostgreSQL, what a user sees."""
