"""A database as somebody outside sees it who knows nothing of the operator: pg_dump, psql's questions, md5.

Everything is asked as the superuser: definitions with owners, rights and the database's own settings, the rows of every
table, large objects, sequences, roles.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from psycopg import sql

from integration.conftest import migrate
from integration.postgres_server import Database, binary
from medianest_operator.api.run_options import RunOptions
from medianest_operator.results.migration import MigrationResult

OWN = ("medianest_operator", "_prisma_migrations")
"""The run's own book-keeping."""


def outside(database: Database) -> Mapping[str, str]:
    """What is there, one text for each thing that is looked at."""
    found = {"definitions": _definitions(database)}
    with database.connect() as connection:
        for schema, table in connection.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema', %s) AND tablename <> %s"
            " UNION ALL SELECT schemaname, matviewname FROM pg_matviews WHERE ispopulated",
            OWN,
        ).fetchall():
            rows = connection.execute(
                sql.SQL("SELECT (t.*)::text FROM ONLY {} t").format(sql.Identifier(schema, table))
            ).fetchall()
            text = "\n".join(sorted(row[0] for row in rows if ",w:" not in row[0]))
            found[f"rows of {schema}.{table}"] = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        questions = {
            "large objects": "SELECT oid, lomowner::regrole, lomacl, md5(lo_get(oid)) FROM pg_largeobject_metadata",
            "roles": "SELECT rolname, rolsuper, rolinherit, rolcanlogin, rolconfig FROM pg_roles",
            "members": "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members",
            "settings": "SELECT setrole::regrole, ARRAY(SELECT unnest(s.setconfig) ORDER BY 1)"
            " FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " WHERE d.datname = current_database()",
            "database": "SELECT datdba::regrole, a.grantor::regrole, a.grantee::regrole, a.privilege_type, is_grantable"
            " FROM pg_database d, aclexplode(coalesce(datacl, acldefault('d', datdba))) a"
            " WHERE datname = current_database()",
            "invalid indexes": "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid",
            "unpopulated": "SELECT oid::regclass FROM pg_class WHERE NOT relispopulated",
        }
        for name, question in questions.items():
            found[name] = "\n".join(sorted(str(row) for row in connection.execute(question.encode()).fetchall()))
    return found


def migrate_and_look(
    database: Database, files: Mapping[str, str], options: RunOptions, folder: Path
) -> tuple[MigrationResult, dict[str, list[str]]]:
    """Run migrations; the result, and what is unlike before."""
    before = outside(database)
    result = migrate(database, files, options, folder=folder)
    return result, unlike(before, outside(database))


def unlike(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """The lines that only one of the two has."""
    return {
        name: sorted(set(before.get(name, "").split("\n")) ^ set(after.get(name, "").split("\n")))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _definitions(database: Database) -> str:
    dumped = subprocess.run(
        [
            *(binary("pg_dump"), "--schema-only", "--create"),
            *(f"--exclude-schema={OWN[0]}", f"--exclude-table=public.{OWN[1]}"),
        ],
        env={**os.environ, **database.environment("postgres")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Newer pg_dumps put a random word around their text. What they set for the session stands wherever the order of
    # entries puts it, and that order is the objects' own where names don't decide it. An access list's order is that in
    # which rights were given.
    session = ("\\restrict", "\\unrestrict", "SET default_tablespace", "SET default_table_access_method")
    entries = re.split(r"^--\n-- Name: ", dumped, flags=re.MULTILINE)
    left_out = (*session, "--")
    kept = [[line for line in entry.splitlines() if line and not line.startswith(left_out)] for entry in entries]
    return "\n".join(sorted("\n".join(_in_order(lines)) for lines in kept))


def _in_order(entry: list[str]) -> list[str]:
    """An entry whose lines say the same in any order: rights, and settings of the database."""
    is_list = any(kind in entry[0] for kind in ("; Type: ACL;", "; Type: DEFAULT ACL;", "; Type: DATABASE PROPERTIES;"))
    return [entry[0], *sorted(entry[1:])] if is_list else entry
