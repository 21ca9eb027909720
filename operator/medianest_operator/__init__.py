"""The MediaNest database operator: one `MediaNestDatabase` in, a production PostgreSQL out."""

__version__ = "0.1.0"
