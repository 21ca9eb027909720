"""Kubernetes quantities and PostgreSQL's sizes as numbers."""

from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

MIB = 1024 * 1024


def to_number(quantity: str | int | float) -> Decimal:
    """A Kubernetes quantity in its base unit: bytes, or cores. Raises ValueError for anything else."""
    number: Decimal = parse_quantity(str(quantity))  # type: ignore[no-untyped-call]
    return number


def to_bytes(quantity: str | int) -> int:
    """A Kubernetes quantity of bytes, rounded down."""
    return int(to_number(quantity))


def megabytes(size: int) -> str:
    """A size for PostgreSQL, in whole megabytes, at least one."""
    return f"{max(1, size // MIB)}MB"
