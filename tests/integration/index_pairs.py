"""Pairs of indexes with what is true of them, worked out by hand from the PostgreSQL manual (11, CREATE INDEX).

Each case has tables of its own; `{t}` is the table's name and begins the names of all that is in it. What can go is
named with what makes it superfluous: `=` for an equal one, `<` for one that does more. What isn't named has to stay.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = """
CREATE TABLE {t} (a int NOT NULL, b int NOT NULL, c int, t text NOT NULL, u text, d timestamptz, j jsonb, s int[],
                  r int4range)
"""


@dataclass(frozen=True)
class Case:
    """Statements, and what can go because of what: `x = y`, `x < y`, without the table's name."""

    name: str
    statements: str
    going: tuple[str, ...] = ()
    table: str = TABLE


def pair(name: str, first: str, second: str, *going: str) -> Case:
    """Two indexes, {t}_x and {t}_y, by what follows their table's name; `UNIQUE` comes first."""
    statements = []
    for letter, text in (("x", first), ("y", second)):
        unique, rest = ("UNIQUE ", text.removeprefix("UNIQUE ")) if text.startswith("UNIQUE ") else ("", text)
        statements.append(f"CREATE {unique}INDEX {{t}}_{letter} ON {{t}} {rest};")
    return Case(name, " ".join(statements), going)


CASES: tuple[Case, ...] = (
    # Columns and their order
    pair("same column", "(a)", "(a)", "y = x"),
    pair("same columns", "(a, b)", "(a, b)", "y = x"),
    pair("other column", "(a)", "(b)"),
    pair("first column", "(a)", "(a, b)", "x < y"),
    pair("second column", "(b)", "(a, b)"),
    pair("first two of three", "(a, b)", "(a, b, c)", "x < y"),
    pair("first and third of three", "(a, c)", "(a, b, c)"),
    pair("other order", "(a, b)", "(b, a)"),
    Case(
        "a chain",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a, b); CREATE INDEX {t}_z ON {t} (a, b, c);",
        ("x < z", "y < z"),
    ),
    Case(
        "three equal ones",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a); CREATE INDEX {t}_z ON {t} (a);",
        ("y = x", "z = x"),
    ),
    # Directions
    pair("descending", "(a)", "(a DESC)"),
    pair("both descending", "(a DESC)", "(a DESC NULLS FIRST)", "y = x"),
    pair("nulls first", "(c)", "(c NULLS FIRST)"),
    pair("descending, nulls last", "(c DESC)", "(c DESC NULLS LAST)"),
    pair("descending first column", "(a)", "(a DESC, b)"),
    pair("second one descending", "(a, b)", "(a, b DESC)"),
    pair("first column of mixed directions", "(a)", "(a, b DESC)", "x < y"),
    # Operator classes
    pair("pattern operators", "(t)", "(t text_pattern_ops)"),
    pair("same pattern operators", "(t text_pattern_ops)", "(t text_pattern_ops)", "y = x"),
    pair("default operators by name", "(t)", "(t text_ops)", "y = x"),
    pair("pattern operators first", "(t)", "(t text_pattern_ops, a)"),
    pair("jsonb operators", "USING gin (j)", "USING gin (j jsonb_path_ops)"),
    # Collations
    pair("other collation", "(t)", '(t COLLATE "POSIX")'),
    pair("same collation", '(t COLLATE "POSIX")', '(t COLLATE "POSIX")', "y = x"),
    pair("other collation first", "(t)", '(t COLLATE "POSIX", a)'),
    pair("collation of an expression", "(lower(t))", '(lower(t) COLLATE "POSIX")'),
    pair("collation within an expression", '(lower(t COLLATE "C"))', '(lower(t COLLATE "POSIX"))'),
    # Included columns
    pair("included column", "(a)", "(a) INCLUDE (b)", "x < y"),
    pair("same included columns in another order", "(a) INCLUDE (b, c)", "(a) INCLUDE (c, b)", "y = x"),
    pair("other included column", "(a) INCLUDE (b)", "(a) INCLUDE (c)"),
    pair("included or a key", "(a) INCLUDE (b)", "(a, b)", "x < y"),
    pair("a key that is included in the other", "(a, b)", "(a) INCLUDE (b)", "y < x"),
    pair("included beside a longer key", "(a) INCLUDE (c)", "(a, b) INCLUDE (c)", "x < y"),
    pair("included, but not in the longer key", "(a) INCLUDE (c)", "(a, b)"),
    # Predicates
    pair("partial or whole", "(a)", "(a) WHERE b > 0"),
    pair("same predicate", "(a) WHERE b > 0", "(a) WHERE b > 0", "y = x"),
    pair("other predicate", "(a) WHERE b > 0", "(a) WHERE b > 1"),
    pair("predicate in other words", "(a) WHERE t IN ('x', 'y')", "(a) WHERE (t = ANY (ARRAY['x', 'y']))", "y = x"),
    pair("predicate in another order", "(a) WHERE b > 0 AND c < 9", "(a) WHERE c < 9 AND b > 0", "y = x"),
    pair("predicate between", "(a) WHERE b BETWEEN 1 AND 9", "(a) WHERE (b >= 1 AND b <= 9)", "y = x"),
    pair("predicate with and in a text", "(a) WHERE t = 'x AND y'", "(a) WHERE t = 'y AND x'"),
    pair("any of two or both", "(a) WHERE b > 0 OR c < 9", "(a) WHERE b > 0 AND c < 9"),
    pair("first column with the same predicate", "(a) WHERE b > 0", "(a, c) WHERE b > 0", "x < y"),
    pair("first column of a partial one", "(a)", "(a, c) WHERE b > 0"),
    pair("partial, first column of a whole one", "(a) WHERE b > 0", "(a, c)"),
    # Expressions
    pair("same expression", "(lower(t))", "(lower(t))", "y = x"),
    pair("other expression", "(lower(t))", "(upper(t))"),
    pair("expression or column", "(t)", "(lower(t))"),
    pair("first expression", "(lower(t))", "(lower(t), a)", "x < y"),
    pair("other first expression", "(lower(t))", "(upper(t), a)"),
    pair("expressions in another order", "(lower(t), upper(u))", "(upper(u), lower(t))"),
    pair("expression in other words", "((a + b))", "((a+b))", "y = x"),
    pair("sum in another order", "((a + b))", "((b + a))"),
    # Access methods
    pair("hash or btree", "(a)", "USING hash (a)"),
    pair("two of hash", "USING hash (a)", "USING hash (a)", "y = x"),
    pair("hash or first column", "USING hash (a)", "(a, b)"),
    pair("two of gin", "USING gin (s)", "USING gin (s)", "y = x"),
    pair("first column of gin", "USING gin (s)", "USING gin (s, j)"),
    pair("two of gist", "USING gist (r)", "USING gist (r)", "y = x"),
    pair("gist or spgist", "USING gist (r)", "USING spgist (r)"),
    pair("two of brin", "USING brin (d)", "USING brin (d)", "y = x"),
    pair("brin of other ranges", "USING brin (d)", "USING brin (d) WITH (pages_per_range = 16)"),
    pair("brin of other operators", "USING brin (a)", "USING brin (a int4_minmax_multi_ops)"),
    # What is only about storage
    pair("other fillfactor", "(a)", "(a) WITH (fillfactor = 70)", "y = x"),
    pair("without deduplication", "(a)", "(a) WITH (deduplicate_items = off)", "y = x"),
    # Rules
    pair("unique over plain", "(a)", "UNIQUE (a)", "x = y"),
    pair("two unique ones", "UNIQUE (a)", "UNIQUE (a)", "y = x"),
    pair("plain, first column of a unique one", "(a)", "UNIQUE (a, b)", "x < y"),
    pair("unique, first column of a plain one", "UNIQUE (a)", "(a, b)"),
    pair("unique, first column of a unique one", "UNIQUE (a)", "UNIQUE (a, b)"),
    pair("unique for some rows", "UNIQUE (a)", "UNIQUE (a) WHERE b > 0"),
    pair("unique with an included column", "UNIQUE (a)", "UNIQUE (a) INCLUDE (b)", "x < y"),
    pair("unique beside a plain one that includes", "UNIQUE (a)", "(a) INCLUDE (b)"),
    pair("stricter about nulls", "UNIQUE (c)", "UNIQUE (c) NULLS NOT DISTINCT", "x = y"),
    pair("unique in another collation", "UNIQUE (t)", 'UNIQUE (t COLLATE "POSIX")'),
)

RULES: tuple[Case, ...] = (
    Case(
        "plain beside a primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a); CREATE INDEX {t}_x ON {t} (a);",
        ("x = y",),
    ),
    Case(
        "unique index beside a primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a); CREATE UNIQUE INDEX {t}_x ON {t} (a);",
        ("x = y",),
    ),
    Case(
        "unique constraint beside a primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a), ADD CONSTRAINT {t}_x UNIQUE (a);",
        ("x = y",),
    ),
    Case(
        "first column of a primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a, b); CREATE INDEX {t}_x ON {t} (a);",
        ("x < y",),
    ),
    Case(
        "primary key, first column of a plain one",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a); CREATE INDEX {t}_x ON {t} (a, b);",
    ),
    Case(
        "unique index beside a constraint",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a); CREATE UNIQUE INDEX {t}_x ON {t} (a);",
        ("x = y",),
    ),
    Case(
        "constraint, first column of a plain one",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a); CREATE INDEX {t}_x ON {t} (a, b);",
    ),
    Case(
        "a deferrable constraint is no replacement, and is replaced",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a) DEFERRABLE; CREATE UNIQUE INDEX {t}_x ON {t} (a);",
        ("y = x",),
    ),
    Case(
        "plain beside a deferrable constraint",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a) DEFERRABLE; CREATE INDEX {t}_x ON {t} (a);",
        ("x = y",),
    ),
    Case(
        "what a foreign key refers to stays, and replaces",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a); CREATE UNIQUE INDEX {t}_x ON {t} (a);"
        " CREATE TABLE {t}_f (a int PRIMARY KEY REFERENCES {t} (a));",
        ("x = y",),
    ),
    Case(
        "a unique constraint that a foreign key refers to, beside the primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y UNIQUE (a);"
        " CREATE TABLE {t}_f (a int PRIMARY KEY REFERENCES {t} (a));"
        " ALTER TABLE {t} ADD CONSTRAINT {t}_x PRIMARY KEY (a);",
    ),
    Case(
        "replica identity stays",
        "CREATE UNIQUE INDEX {t}_x ON {t} (a); CREATE UNIQUE INDEX {t}_y ON {t} (a);"
        " ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_y;",
        ("x = y",),
    ),
    Case(
        "replica identity beside a primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_x PRIMARY KEY (a); CREATE UNIQUE INDEX {t}_y ON {t} (a);"
        " ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_y;",
    ),
    Case(
        "clustered stays",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a); CLUSTER {t} USING {t}_y;",
        ("x = y",),
    ),
    Case(
        "clustered, first column",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a, b); CLUSTER {t} USING {t}_x;",
    ),
    Case(
        "exclusion constraint stays, and replaces",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y EXCLUDE USING gist (r WITH &&);"
        " CREATE INDEX {t}_x ON {t} USING gist (r);",
        ("x = y",),
    ),
    Case(
        "two exclusion constraints",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_x EXCLUDE USING gist (r WITH &&),"
        " ADD CONSTRAINT {t}_y EXCLUDE USING gist (r WITH &&);",
    ),
    Case(
        "invalid ones replace nothing",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a, b);"
        " UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{t}_y'::regclass;",
    ),
    Case(
        "parent and child by inheritance",
        "CREATE TABLE {t}_f () INHERITS ({t}); CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t}_f (a);",
    ),
    Case(
        "quoted names",
        'CREATE INDEX "{t}_X y" ON {t} (a); CREATE INDEX "{t}_a""b" ON {t} (a);',
        ('a"b = X y',),
    ),
)

PARTITIONED = """
CREATE TABLE {t} (a int NOT NULL, b int NOT NULL) PARTITION BY RANGE (a);
CREATE TABLE {t}_p PARTITION OF {t} FOR VALUES FROM (0) TO (9)
"""
PARTITIONS: tuple[Case, ...] = (
    Case(
        "two partitioned indexes, as wholes",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a);",
        ("y = x",),
        PARTITIONED,
    ),
    Case(
        "first column of a partitioned index",
        "CREATE INDEX {t}_x ON {t} (a); CREATE INDEX {t}_y ON {t} (a, b);",
        ("x < y",),
        PARTITIONED,
    ),
    Case(
        "a partition's own beside its part of the whole",
        "CREATE INDEX {t}_y ON {t} (a); CREATE INDEX {t}_x ON {t}_p (a);",
        ("x = p_a_idx",),
        PARTITIONED,
    ),
    Case(
        "a partition's longer one beside its part of the whole",
        "CREATE INDEX {t}_y ON {t} (a); CREATE INDEX {t}_x ON {t}_p (a, b);",
        (),
        PARTITIONED,
    ),
    Case(
        "partitioned primary key",
        "ALTER TABLE {t} ADD CONSTRAINT {t}_y PRIMARY KEY (a); CREATE INDEX {t}_x ON {t} (a);",
        ("x = y",),
        PARTITIONED,
    ),
)

ALL = (*CASES, *RULES, *PARTITIONS)
