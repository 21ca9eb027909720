"""The verifiers that the operator stores are those of the passwords that people log in with, whatever is in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import Connection, sql

from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator.postgres import scram

# As PostgreSQL has them: a no-break space, letters that normalization takes apart or puts together, what is mapped to
# nothing, what is prohibited, unassigned, of two directions, or nothing but what is mapped away.
PASSWORDS = (
    "plain",
    "with\u00a0no-break\u2003space",
    "\ufb01ne \u2168 \u00aa\u00b2 \u212b",
    "caf\u00e9",
    "cafe\u0301",
    "soft\u00adhyphen\u200d",
    "\u00ad",
    "bell\u0007",
    "bell\u0007\u00e9",
    "private \ue000",
    "\u0221 unassigned",
    "\U0001f600 later than 3.2",
    "\u0627\u0628",
    "\u06271",
    "\u0627a\u0628",
    "\u1100\u1161\u11a8",
    "\uff21\uff42\uff43",
    "p\u00e4ss: @/?%",
    " \u3000 ",
)


@pytest.fixture(scope="module")
def strict() -> Iterator[PostgresServer]:
    """A server that asks one role for its password."""
    with running_server() as running:
        running.maintenance.execute("CREATE ROLE person LOGIN")
        hba = running.folder / "data" / "pg_hba.conf"
        hba.write_text(f"local all person scram-sha-256\n{hba.read_text()}")
        running.maintenance.execute("SELECT pg_reload_conf()")
        with pytest.raises(psycopg.OperationalError, match="password"):
            _log_in(running.maintenance, "wrong")
        yield running


@pytest.mark.parametrize("password", PASSWORDS)
def test_login_with_the_operators_verifier(strict: PostgresServer, password: str) -> None:
    statement = sql.SQL("ALTER ROLE person PASSWORD {}").format(sql.Literal(scram.verifier(password)))
    with strict.maintenance.connect() as connection:
        connection.execute(statement)
    assert _log_in(strict.maintenance, password) == "person"


@pytest.fixture(scope="module")
def admin(strict: PostgresServer) -> Iterator[Connection[tuple[object, ...]]]:
    with strict.maintenance.connect() as connection:
        yield connection


_SERVERS_OWN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0", max_codepoint=0x323AF), min_size=1, max_size=12
)


@settings(max_examples=400, deadline=None)
@given(_SERVERS_OWN)
@example("\u0340\u0341")
def test_verifier_of_the_server_is_known_again(admin: Connection[tuple[object, ...]], password: str) -> None:
    if any(unicodedata.category(character) == "Cn" for character in password):
        # Normalization of what this Python doesn't know is not compared.
        return
    admin.execute(sql.SQL("ALTER ROLE person PASSWORD {}").format(sql.Literal(password)))
    row = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'person'").fetchone()
    assert row is not None
    assert scram.matches(password, str(row[0]))


def _log_in(database: Database, password: str) -> str:
    """The role as which the server has let the password in."""
    with database.connect("person", password=password) as connection:
        return str(connection.execute("SELECT session_user").fetchone()[0])  # type: ignore[index]
