"""Kubernetes quantities and PostgreSQL's sizes as numbers."""

import re
from datetime import timedelta
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

MIB = 1024 * 1024
_UNITS = {"h": 3600, "m": 60, "s": 1}


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


def to_timedelta(duration: str) -> timedelta:
    """A duration as Go writes it, such as `1h30m`."""
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)))
