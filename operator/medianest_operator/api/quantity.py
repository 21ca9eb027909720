"""Kubernetes quantities and PostgreSQL's sizes as numbers."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Final

MIB = 1024 * 1024
# The grammar of resource.Quantity (Kubernetes API reference, Quantity). The `kubernetes` package, which reads it too,
# takes 20 MiB and a tenth of a second to be imported.
_QUANTITY: Final = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?[0-9]{1,3}))?"
)
_BINARY: Final[dict[str, int]] = {f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", 1)}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def to_number(quantity: str | int | float) -> Decimal:
    """A Kubernetes quantity in its base unit: bytes, or cores. Raises ValueError for anything else."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f"{quantity} is not a quantity, such as 500m, 2Gi or 1e3")
    number, binary, suffix, exponent = found.groups()
    if binary:
        return Decimal(number) * _BINARY[binary]
    return Decimal(number).scaleb(_DECIMAL[suffix] if suffix else int(exponent or 0))


def to_bytes(quantity: str | int) -> int:
    """A Kubernetes quantity of bytes, rounded down."""
    return int(to_number(quantity))


def from_bytes(size: int) -> str:
    """Bytes as a quantity, in the largest unit that is exact."""
    for unit, name in ((1024 * MIB, "Gi"), (MIB, "Mi"), (1024, "Ki")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def megabytes(size: int) -> str:
    """A size for PostgreSQL, in whole megabytes, at least one."""
    return f"{max(1, size // MIB)}MB"


def to_timedelta(duration: str) -> timedelta:
    """A duration as Go writes it, such as `1h30m`, or `50ms`."""
    parts = re.findall(r"(\d+)(ms|[hms])", duration)
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))
