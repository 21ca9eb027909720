"""PostgreSQL's own description taken apart, compared, and turned into the statements that lead back to it."""

from __future__ import annotations

import pytest

from medianest_operator.migrations.rollback.rights import put_back
from medianest_operator.migrations.run.description import differences, entries
from medianest_operator.migrations.run.evidence import catalog_from_json
from medianest_operator.migrations.script import in_ascii


def dump(*items: tuple[str, str, str]) -> str:
    """A plain dump of entries: kind, name, SQL."""
    parts = [f"--\n-- Name: {name}; Type: {kind}; Schema: public; Owner: o\n--\n\n{sql}\n" for kind, name, sql in items]
    head = (
        "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\n-- Dumped from database version 15.18\n\nSET a = 1;\n\n"
    )
    return head + "\n".join(parts) + "\n--\n-- PostgreSQL database dump complete\n--\n"


TABLE = ("TABLE", "t", "CREATE TABLE t (\n    a int,\n    b int\n);")
VIEW = ("VIEW", "v", "CREATE VIEW v AS SELECT 1;")
ACL = ("ACL", "TABLE t", "GRANT SELECT ON TABLE t TO x;\nGRANT INSERT ON TABLE t TO y WITH GRANT OPTION;")


SETTINGS = (
    "DATABASE PROPERTIES",
    "d",
    "ALTER DATABASE d SET work_mem TO '5MB';\nALTER DATABASE d SET search_path TO 'public';",
)


@pytest.mark.parametrize("listed", [ACL, SETTINGS])
def test_order_of_entries_of_rights_and_of_settings_is_no_difference(listed: tuple[str, str, str]) -> None:
    other = (*listed[:2], "\n".join(reversed(listed[2].split("\n"))))
    assert differences(entries(dump(TABLE, VIEW, listed)), entries(dump(other, VIEW, TABLE))) == []


def test_roles_of_others_are_no_difference() -> None:
    """An earlier version of the operator described them all."""
    known, other = {"ROLE own": "{}", "ROLE other": "{}"}, {"ROLE own": "{}", "ROLE third": "{}"}
    assert differences(known, other) == []
    assert differences(known, {"ROLE own": '{"rolsuper": true}'})


def test_settings_of_roles_that_an_earlier_version_wrote_down_are_no_difference() -> None:
    setting = {"kind": "settings", "table": "", "name": "cluster role other", "attributes": {}}
    assert catalog_from_json([setting, setting | {"name": "database"}]).objects.keys() == {("settings", "", "database")}


def test_order_of_columns_is_one() -> None:
    other = ("TABLE", "t", "CREATE TABLE t (\n    b int,\n    a int\n);")
    assert differences(entries(dump(TABLE)), entries(dump(other)))


def test_what_is_missing_new_or_changed_is_named() -> None:
    changed = ("VIEW", "v", "CREATE VIEW v AS SELECT 2;")
    new = ("COLLATION", "ci", "CREATE COLLATION ci;")
    assert differences(entries(dump(TABLE, VIEW)), entries(dump(changed, new))) == [
        "collation ci is not expected",
        "table t is missing",
        "view v is described otherwise: `CREATE VIEW v AS SELECT 2;`, expected `CREATE VIEW v AS SELECT 1;`",
    ]


def test_comment_in_a_body_that_looks_like_an_entry_hides_nothing() -> None:
    body = "CREATE FUNCTION f() AS $$\n-- Name: x; Type: TABLE; Schema: public; Owner: o\nSELECT {};\n$$;"
    one, two = (entries(dump(("FUNCTION", "f()", body.format(number)))) for number in (1, 2))
    assert differences(one, two)


@pytest.mark.parametrize(
    ("kind", "was", "now", "statements"),
    [
        ("ACL", "", "GRANT SELECT ON TABLE t TO x;", ["REVOKE SELECT ON TABLE t FROM x"]),
        ("ACL", "GRANT SELECT ON TABLE t TO x;", "", ["GRANT SELECT ON TABLE t TO x;"]),
        ("ACL", "", "REVOKE USAGE ON SCHEMA s FROM PUBLIC;", ["GRANT USAGE ON SCHEMA s TO PUBLIC"]),
        (
            "ACL",
            "GRANT SELECT ON TABLE t TO x WITH GRANT OPTION;",
            "GRANT SELECT ON TABLE t TO x;",
            ["REVOKE SELECT ON TABLE t FROM x", "GRANT SELECT ON TABLE t TO x WITH GRANT OPTION;"],
        ),
        (
            "DEFAULT ACL",
            "",
            "ALTER DEFAULT PRIVILEGES FOR ROLE o REVOKE ALL ON FUNCTIONS FROM PUBLIC;",
            ["ALTER DEFAULT PRIVILEGES FOR ROLE o GRANT ALL ON FUNCTIONS TO PUBLIC"],
        ),
        ("DATABASE PROPERTIES", "", "ALTER DATABASE d SET work_mem TO '9MB';", ["ALTER DATABASE d RESET work_mem"]),
        (
            "DATABASE PROPERTIES",
            "ALTER DATABASE d SET work_mem TO '4MB';",
            "ALTER DATABASE d SET work_mem TO '9MB';",
            ["ALTER DATABASE d RESET work_mem", "ALTER DATABASE d SET work_mem TO '4MB';"],
        ),
        ("COMMENT", "", "COMMENT ON SCHEMA public IS 'x';", ["COMMENT ON SCHEMA public IS 'standard public schema'"]),
        ("COMMENT", "", "COMMENT ON TABLE t IS 'x\ny';", ["COMMENT ON TABLE t IS NULL"]),
        ("ACL", "", "SET SESSION AUTHORIZATION z;\nGRANT SELECT ON TABLE t TO x;\nRESET SESSION AUTHORIZATION;", []),
    ],
)
def test_rights_settings_and_comments_are_put_back(kind: str, was: str, now: str, statements: list[str]) -> None:
    before, after = ({f"{kind} n": text} if text else {} for text in (was, now))
    assert put_back(before, after, locked_out=False) == statements


@pytest.mark.parametrize(
    ("sql", "structure"),
    [
        ("SELECT 'grün'", "SELECT 'gr_n'"),
        ("$é$a$è$", "$b$a$c$"),
        ("$a$ $é$ $a$ $é$", "$a$ $b$ $a$ $b$"),
    ],
)
def test_stand_ins_keep_dollar_tags_apart(sql: str, structure: str) -> None:
    assert in_ascii(sql) == structure
    assert len(in_ascii(sql)) == len(sql)
