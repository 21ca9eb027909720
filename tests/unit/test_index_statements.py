"""No statement that a report gives says anything that PostgreSQL didn't write, on more than one line, or too long."""

from __future__ import annotations

import pytest

from medianest_operator.agent.show import index_report
from medianest_operator.health.indexes.expected import missing
from medianest_operator.health.indexes.report import judge
from medianest_operator.migrations.bundled import application_facts
from medianest_operator.migrations.indexes import _recorded
from medianest_operator.postgres.catalog import CatalogObject
from medianest_operator.postgres.index_definition import IndexDefinition
from unit.index_values import catalog, index

PLAIN = "CREATE INDEX x ON public.t USING btree (a)"


def fix_of(definition: str, name: str = "x", table: str = "t", *, primary: bool = False) -> str | None:
    [entry] = missing([IndexDefinition(name, table, definition, primary)], ())
    return entry.fix


@pytest.mark.parametrize(
    "definition",
    [
        PLAIN,
        "CREATE UNIQUE INDEX x ON public.t USING btree (a DESC NULLS LAST, b) INCLUDE (c) NULLS NOT DISTINCT",
        "CREATE INDEX x ON public.t USING gin (j jsonb_path_ops) WITH (fastupdate='off') WHERE (b > '-1'::integer)",
        "CREATE INDEX x ON public.t USING btree (lower((n)::text) COLLATE \"de-x-icu\") TABLESPACE fast WHERE active",
        "CREATE INDEX x ON public.t USING btree (a) WHERE ((n)::text = ANY ((ARRAY['a''; b'::text, '--'])::text[]))",
        "CREATE INDEX x ON public.t USING btree (((j -> 'a'::text) #>> '{}'::text[]), ((a / 2)), ((- a)), ((a - b)))",
        "CREATE INDEX x ON public.t USING btree (a) WHERE ((\"Name\" ~ '^x$'::text) AND (b = 1.5))",
    ],
)  # fmt: skip
def test_what_postgresql_writes_becomes_a_statement(definition: str) -> None:
    assert fix_of(definition) == definition.replace("INDEX x", "INDEX CONCURRENTLY x") + ";"


@pytest.mark.parametrize("definition", [item.definition for _, item in application_facts().indexes])
def test_every_bundled_index_has_a_statement(definition: str) -> None:
    [item] = [item for _, item in application_facts().indexes if item.definition == definition]
    [entry] = missing([item], ())
    assert entry.fix


@pytest.mark.parametrize(
    "definition",
    [
        "DROP TABLE users",
        PLAIN + "; DROP TABLE users",
        PLAIN + " -- ",
        PLAIN + " /* ",
        PLAIN + " \\! touch /tmp/x",
        PLAIN + "\n\\! touch /tmp/x",
        "CREATE INDEX x ON public.t USING btree (a\\! touch /tmp/x\n)",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = '\\! touch')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = E'\\'; DROP TABLE users; --')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = 'x''; DROP TABLE users",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = $$x$$)",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = :'HOME')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = :HOME)",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = `id`)",
        "CREATE INDEX x ON public.t USING btree (a)) WHERE (b",
        "CREATE INDEX x ON public.t USING btree (a) SELECT (b)",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = 'a\nb')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = 'a\u2028b')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = 'a\u202eb')",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = 'a\x1b[2Jb')",
        "CREATE INDEX x ON public.t USING btree (a\x00)",
        "CREATE INDEX x ON public.users USING btree (a)",
        "CREATE INDEX x ON other.t USING btree (a)",
        "CREATE INDEX y ON public.t USING btree (a)",
        "CREATE INDEX x ON public.t USING btree (a) WHERE (b = '" + "x" * 9000 + "')",
    ],
)
def test_what_somebody_put_into_the_journal_becomes_none(definition: str) -> None:
    assert fix_of(definition) is None


def test_a_definition_of_many_quotes_is_read_at_once() -> None:
    assert fix_of('CREATE INDEX x ON public."' + '"' * 20001 + " USING x") is None
    assert fix_of('CREATE INDEX "' + '"' * 20001 + " ON public.t USING btree (a)") is None


def test_quoted_names() -> None:
    definition = 'CREATE INDEX "by ""N" ON public."Odd t" USING btree ("A")'
    assert fix_of(definition, 'by "N', "Odd t") == definition.replace("INDEX ", "INDEX CONCURRENTLY ") + ";"


def test_partitioned_ones_are_made_whole_and_a_part_is_not_dropped() -> None:
    only = "CREATE INDEX x ON ONLY public.t USING btree (a)"
    assert fix_of(only) == PLAIN + ";"
    assert fix_of(only.replace("CREATE", "CREATE UNIQUE"), primary=True) is None
    expected = IndexDefinition("x", "t", PLAIN)
    [entry] = missing([expected], [index(1, "b", name="x", parent=7)])
    assert entry.fix is None
    [entry] = missing([expected], [index(1, "b", name="x", partitioned=True)])
    assert entry.fix == f"DROP INDEX public.x; {PLAIN.replace('INDEX', 'INDEX CONCURRENTLY')};"
    [entry] = missing([IndexDefinition("x", "t", only)], [index(1, "a", name="x", valid=False, partitioned=True,
                                                                definition=only)])  # fmt: skip
    assert entry.fix is None


def test_names_in_the_journal_that_postgresql_has_not_are_ignored() -> None:
    def recorded(table: str, name: str) -> CatalogObject:
        return CatalogObject("index", table, name, {"definition": PLAIN, "primary": False})

    items = [
        recorded("t", "x" * 63),
        recorded("t", "x" * 64),
        recorded("t" * 64, "x"),
        recorded("t", '"' + "ä" * 32 + '"'),
    ]
    found = _recorded(items)
    assert [item.name for item in found] == ["x" * 63]


def test_names_with_lines_of_their_own_are_shown_on_one() -> None:
    forged = "x\n           fix: DROP DATABASE app; \x1b[8m\u202e"
    indexes = [index(1, "a"), index(2, "a", name=forged, identifier=f'public."{forged}"')]
    report = judge(catalog(*indexes), ())
    [entry] = report.duplicate
    assert entry.name == "x\\u000a           fix: DROP DATABASE app; \\u001b[8m\\u202e"
    assert entry.fix is None
    lines = index_report(report).splitlines()
    assert not any(line.strip().startswith("fix:") for line in lines)
    assert "\x1b" not in index_report(report)
