"""What judging indexes costs where somebody made thousands of them: work in proportion to their number."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from medianest_operator.health.indexes.catalog import Catalog, Index
from medianest_operator.health.indexes.overlap import overlaps, replaces
from medianest_operator.health.indexes.predicates import conjuncts
from medianest_operator.health.indexes.report import bounded_json, judge
from medianest_operator.postgres.index_definition import IndexDefinition
from unit.index_values import catalog, foreign_key, index

MANY = 2000


def work(task: Callable[[], object]) -> int:
    """The Python functions that are called, comprehensions and steps of generators among them."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        task()
    finally:
        sys.setprofile(None)
    return calls


def many(shape: Callable[[int], Index], number: int = MANY) -> Catalog:
    indexes = tuple(shape(oid) for oid in range(1, number + 1))
    key = foreign_key(1, "a", *(item.oid for item in indexes))
    return catalog(
        *indexes, foreign_keys=tuple(replace(key, oid=oid, name=f"fk_{oid}") for oid in range(1, number + 1))
    )


SHAPES: dict[str, Callable[[int], Index]] = {
    "equal": lambda oid: index(oid, "a b"),
    "of one first column": lambda oid: index(oid, f"a b{oid}"),
    "that include others": lambda oid: index(oid, "a", f"b{oid} c{oid % 7}"),
    "unique": lambda oid: index(oid, f"a b{oid % 9}", unique=True),
    "of one predicate each": lambda oid: index(oid, "a", predicate=f"((b > 0) AND (c < {oid}))"),
    "hash": lambda oid: index(oid, "a", method="hash"),
    "invalid": lambda oid: index(oid, "a", valid=False, name=f"t_{oid}_ccnew{oid}"),
    "one invalid, one not": lambda oid: index(oid, f"a b{oid // 2}", valid=oid % 2 == 0, name=f"t{oid}_ccnew"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_work_grows_with_the_number_of_indexes_and_not_with_that_of_pairs(shape: Callable[[int], Index]) -> None:
    wanted = tuple(IndexDefinition(f"w{n}", "t", index(n, f"d{n}").definition) for n in range(MANY))
    few, all_of_them = many(shape, MANY // 4), many(shape)
    fewer = work(lambda: judge(few, (), wanted[: MANY // 4]))
    more = work(lambda: judge(all_of_them, (), wanted))
    assert more < 5 * fewer
    assert more < 300 * MANY


def test_sets_say_what_comparing_each_pair_would() -> None:
    chance = random.Random(15)
    for _ in range(300):
        indexes = [
            index(
                oid,
                " ".join(chance.sample("abc", chance.randint(1, 3))),
                " ".join(chance.sample("de", chance.randint(0, 2))),
                unique=chance.random() < 0.3,
                nulls_not_distinct=chance.random() < 0.3,
                immediate=chance.random() < 0.7,
                method=chance.choice(("btree", "btree", "btree", "hash")),
                predicate=chance.choice((None, None, "(a > 0)")),
            )
            for oid in range(1, 9)
        ]
        found = {item.index.oid: item for item in overlaps(indexes)}
        left = [item for item in indexes if item.oid not in found]
        for item in found.values():
            assert replaces(item.kept, item.index)
            assert item.kept in left
            assert item.equal is (item.kept.shape == item.index.shape)
        assert not any(replaces(other, item) for item in left for other in left if other is not item)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(a > 0)", {"a > 0"}),
        ("a", {"a"}),
        ("((a > 0) AND (b < 9))", {"a > 0", "b < 9"}),
        ("(((a > 0) AND (b < 9)) AND c)", {"((a > 0) AND (b < 9)) AND c"}),
        ("(((a > 0) AND (b < 9)) AND (c))", {"a > 0", "b < 9", "c"}),
        ("((a > 0) OR (b < 9))", {"(a > 0) OR (b < 9)"}),
        ("((t = ' AND ('::text) AND (\"x)\" > 1))", {"t = ' AND ('::text", '"x)" > 1'}),
        ("(((a + b) > (c + d)) AND (d > 0))", {"(a + b) > (c + d)", "d > 0"}),
        ("(a > 0))", {"(a > 0))"}),
    ],
)
def test_conditions_of_a_predicate(text: str, parts: set[str]) -> None:
    assert conjuncts(text) == parts


def test_a_deep_predicate_is_read_once() -> None:
    def nested(depth: int) -> str:
        return "(" * depth + "(a0 > 0)" + "".join(f" AND (a{level} > 0))" for level in range(1, depth + 1))

    assert conjuncts(nested(3000)) == {f"a{level} > 0" for level in range(3001)}
    assert work(lambda: conjuncts(nested(3000))) < 11 * work(lambda: conjuncts(nested(300)))


async def test_other_coroutines_run_while_thousands_are_judged() -> None:
    turns = 0
    judging = asyncio.ensure_future(asyncio.to_thread(judge, many(SHAPES["of one first column"]), ()))
    while not judging.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 1
    assert (await judging).total == MANY


def test_what_was_not_read_is_neither_missing_nor_without_index_and_is_told() -> None:
    critical = (IndexDefinition("t_1", "t", index(1, "a").definition),)
    key = foreign_key(1, "b")
    assert judge(catalog(index(1, "a"), foreign_keys=(key,)), critical).foreign_keys
    wanted = tuple(IndexDefinition(f"x{n:05}", "t", index(n, "b").definition) for n in range(3000))
    report = judge(catalog(index(1, "a"), foreign_keys=(key,), unread=77), critical, wanted)
    assert (report.not_judged, report.total, report.foreign_keys) == (77, 78, ())
    assert len(report.missing) <= MANY
    assert '"not_judged": 77' in bounded_json(report)
