"""The databases of a server: one for each set of furniture, made once, and copies of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from integration.differential import meddling
from integration.differential.furniture import OWN, PIECES, ROWS, chosen
from integration.differential.state import State, look
from integration.postgres_server import Database, PostgresServer, binary

_REFRESHING = """
SELECT 'REFRESH MATERIALIZED VIEW ' || oid::regclass FROM pg_class WHERE relkind = 'm' AND relispopulated ORDER BY oid
"""


@dataclass(frozen=True)
class Furnished:
    """A database that is only copied, and what it is."""

    database: Database
    state: State


class Field:
    """What cases are played on.

    Args:
        server: where the databases are.
        template: has the bundled schema and its history.
        folder: for backups, copies and sources.
    """

    def __init__(self, server: PostgresServer, template: Database, folder: Path) -> None:
        self.server = server
        self._folder = folder
        for path in (folder, folder.parent, folder.parent.parent):
            path.chmod(path.stat().st_mode | 0o055)
        self._template = template
        self._furnished: dict[int, Furnished] = {}

    def furnished(self, number: int) -> Furnished:
        """The database with that set of furniture."""
        if number not in self._furnished:
            database = self.server.create_database(self._template.name)
            pieces = [PIECES[name] for name in chosen(number)]
            database.execute(ROWS)
            database.execute(f"SET ROLE medianest; {OWN}; {'; '.join(piece.own for piece in pieces if piece.own)}")
            for piece in pieces:
                if piece.others:
                    database.execute(piece.others)
            self._furnished[number] = Furnished(database, look(database))
        return self._furnished[number]

    @contextmanager
    def copy(self, number: int) -> Iterator[Database]:
        """A database with that set of furniture, for one case."""
        database = self.server.create_database(self.furnished(number).database.name)
        self._set_again(number, database)
        try:
            yield database
        finally:
            self.server.drop_database(database)

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A folder for one case, which the throwaway servers' account can enter."""
        path = Path(mkdtemp(prefix="case", dir=self._folder))
        path.chmod(0o755)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def expected(
        self,
        number: int,
        files: Mapping[str, str],
        applied: Sequence[str],
        act: meddling.Act | None,
        *,
        refreshed: bool = False,
    ) -> State:
        """Where PostgreSQL's own client leads to with these files, and with what a DBA has done.

        Args:
            refreshed: with every materialized view filled again.

        Raises:
            AssertionError: it leads nowhere.
        """
        if not applied and act is None and not refreshed:
            return self.furnished(number).state
        with self.copy(number) as database:
            for name in applied:
                if not _apply(database, files[name]):
                    raise AssertionError(f"psql can't apply {name}, which is said to be applied")
            if act is not None and not meddling.do(database, act):
                raise AssertionError(f"the DBA's {act.name} can't be there after {', '.join(applied)}")
            if refreshed:
                for (statement,) in database.execute(_REFRESHING):
                    database.execute(f"SET ROLE medianest; {statement}")
            return look(database)

    def leads_on(self, number: int, files: Mapping[str, str], names: Sequence[str]) -> bool:
        """Whether PostgreSQL's own client applies these files, one after the other."""
        with self.copy(number) as database:
            return all(_apply(database, files[name]) for name in names)

    def _set_again(self, number: int, database: Database) -> None:
        """A database's settings and rights aren't its template's (PostgreSQL manual, CREATE DATABASE)."""
        if "settings" in chosen(number):
            database.execute(PIECES["settings"].own)


def _apply(database: Database, text: str) -> bool:
    """A file as it is; or within BEGIN and COMMIT, as a run may send it: LOCK and SAVEPOINT want that."""
    return any(
        subprocess.run(
            [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", *around, "-c", text],
            env={**os.environ, **database.environment()},
            capture_output=True,
            check=False,
        ).returncode
        == 0
        for around in ([], ["--single-transaction"])
    )
