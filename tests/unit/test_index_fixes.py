"""All that a report tells to drop can be dropped together: what was used is served, and what was needed is there."""

from __future__ import annotations

import random

import pytest

from medianest_operator.health.indexes.catalog import Catalog, Index
from medianest_operator.health.indexes.foreign_keys import without_index
from medianest_operator.health.indexes.overlap import replaces
from medianest_operator.health.indexes.report import Report, judge
from medianest_operator.postgres.index_definition import IndexDefinition
from unit.index_values import catalog, foreign_key, index


def told(report: Report) -> dict[str, list[str]]:
    return {
        "duplicate": [entry.name for entry in report.duplicate],
        "redundant": [entry.name for entry in report.redundant],
        "unused": [entry.name for entry in report.unused or ()],
    }


@pytest.mark.parametrize(
    ("indexes", "unused", "key", "found"),
    [
        # The longer one was never scanned, since the planner took the shorter.
        (["a", "a b"], [2], "", ([], ["t_1"], [])),
        (["a", "a"], [1], "", (["t_2"], [], [])),
        (["a", "a"], [1, 2], "", (["t_2"], [], [])),
        (["a b", "a c"], [1, 2], "a", ([], [], ["t_1"])),
        (["a b", "a c"], [1], "a", ([], [], ["t_1"])),
        (["a b", "a c"], [1, 2], "", ([], [], ["t_1", "t_2"])),
        (["a", "a b", "a c"], [2, 3], "a", ([], ["t_1"], ["t_3"])),
        (["a b", "a b", "a c"], [1, 2, 3], "a", (["t_2"], [], ["t_3"])),
    ],
)
def test_of_two_that_serve_the_same_one_stays(
    indexes: list[str], unused: list[int], key: str, found: tuple[list[str], list[str], list[str]]
) -> None:
    made = [index(oid, keys) for oid, keys in enumerate(indexes, 1)]
    keys = (foreign_key(9, key, *range(1, len(made) + 1)),) if key else ()
    report = judge(catalog(*made, foreign_keys=keys), (), unused=[item for item in made if item.oid in unused])
    assert tuple(told(report).values()) == found


def test_a_critical_index_never_goes_and_of_equal_ones_the_one_that_no_migration_made() -> None:
    critical = IndexDefinition("t_2", "t", index(2, "a").definition)
    made = IndexDefinition("t_9", "t", index(9, "d").definition)
    indexes = [index(1, "a"), index(2, "a"), index(3, "a b"), index(8, "d"), index(9, "d")]
    report = judge(catalog(*indexes), [critical], [critical, made], unused=indexes)
    assert told(report) == {"duplicate": ["t_1", "t_8"], "redundant": [], "unused": ["t_3"]}


def test_an_index_that_gives_way_to_the_expected_one_of_its_name_replaces_none_and_goes_once() -> None:
    expected = IndexDefinition("t_2", "t", index(2, "c").definition)
    indexes = [index(1, "a"), index(2, "a b")]
    report = judge(catalog(*indexes), (), [expected], unused=indexes[1:])
    assert [entry.name for entry in report.missing] == ["t_2"]
    assert told(report) == {"duplicate": [], "redundant": [], "unused": []}


def test_what_is_to_be_dropped_is_not_to_be_rebuilt() -> None:
    airy = [index(oid, "a", pages=4096, rows=100.0) for oid in (1, 2)]
    report = judge(catalog(*airy), ())
    assert [entry.name for entry in report.bloated] == ["t_1"]


def random_catalog(chance: random.Random) -> Catalog:
    indexes = [
        index(
            oid,
            " ".join(chance.sample("abc", chance.randint(1, 3))),
            " ".join(chance.sample("de", chance.choice((0, 0, 1)))),
            unique=chance.random() < 0.2,
            predicate=chance.choice((None, None, None, "(a IS NOT NULL)", "(b > 0)")),
        )
        for oid in range(1, chance.randint(2, 9))
    ]
    keys = []
    for oid in range(chance.randint(0, 3)):
        columns = chance.sample("abc", chance.randint(1, 2))
        usable = [item.oid for item in indexes if {key.definition for key in item.keys[: len(columns)]} == set(columns)]
        keys.append(foreign_key(oid, " ".join(columns), *usable))
    return catalog(*indexes, foreign_keys=tuple(keys))


def test_all_statements_together_leave_what_was_used_and_what_foreign_keys_need() -> None:
    chance = random.Random(15)
    dropped_at_all = 0
    for _ in range(2000):
        before = random_catalog(chance)
        unused = [item for item in before.indexes if not item.unique and chance.random() < 0.6]
        lists = told(judge(before, (), unused=unused))
        dropped = [name for names in lists.values() for name in names]
        assert len(dropped) == len(set(dropped))
        left: list[Index] = [item for item in before.indexes if item.name not in dropped]
        for used in (item for item in before.indexes if item not in unused):
            assert used in left or any(replaces(other, used) for other in left)
        after = catalog(*left, foreign_keys=before.foreign_keys)
        assert without_index(after) == without_index(before)
        dropped_at_all += len(dropped)
    assert dropped_at_all > 2000


def test_an_unused_expression_has_statistics_that_no_counter_shows() -> None:
    indexes = [index(1, "lower(a)"), index(2, "a")]
    computed, plain = judge(catalog(*indexes), (), unused=indexes).unused or ()
    assert "CREATE STATISTICS" in computed.evidence
    assert "CREATE STATISTICS" not in plain.evidence
