"""Prisma's migration history, kept as Prisma keeps it: sources, plan, run."""
