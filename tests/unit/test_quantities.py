"""Quantities are read as Kubernetes' own package reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from medianest_operator.api.quantity import to_bytes, to_number

SUFFIXES = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]


@given(st.decimals(-(10**9), 10**9, places=3), st.sampled_from(SUFFIXES))
@example(Decimal("0.5"), "Gi")
@example(Decimal(100), "m")
def test_a_quantity_is_what_the_package_says(number: Decimal, suffix: str) -> None:
    text = f"{number:f}{suffix}"
    assert to_number(text) == parse_quantity(text)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("1Gi", 2**30), ("1G", 10**9), ("1.5Ki", 1536), ("1024", 1024), (7, 7), ("1e3", 1000), ("12E-1", 1), ("+5.", 5)],
)
def test_bytes_are_whole(quantity: str | int, number: int) -> None:
    assert to_bytes(quantity) == number


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "1ki", "0x10", "1e", "NaN", "Infinity", "1e9999", "1Gii"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        to_number(text)
