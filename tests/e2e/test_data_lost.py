"""docs/runbooks/DataLost.md, followed word by word: every block of it is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from e2e.backups import account, ask, wait_over
from e2e.kube import Kube, condition_of
from e2e.schemas import PEOPLE

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbooks" / "DataLost.md"
ROWS = (
    "UPDATE users SET name = initcap(id); INSERT INTO error_logs"
    " (id, correlation_id, user_id, error_code, error_message, stack_trace, request_path, request_method)"
    " VALUES ('e1', 'c', 'u1', 'E', 'failed', 'at x', '/', 'GET')"
)
# A database's own, besides what is in it.
_OWN = (
    "SELECT datconnlimit, shobj_description(oid, 'pg_database'),"
    " (SELECT array_agg(r ORDER BY r) FROM unnest(datacl::text[]) r),"
    " (SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole = 0)"
    " FROM pg_database d WHERE datname = 'medianest'"
)
_NAMES = "NS=medianest DB=medianest"


class Reader:
    """Somebody with the page before them, and their own names in its first block."""

    def __init__(self, kube: Kube) -> None:
        head, *sections = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
        [names] = _blocks(head)
        assert names.startswith(_NAMES)
        self._names = names.replace(_NAMES, f"NS={kube.namespace} DB=db")
        self._sections = dict(zip(sections[::2], map(_blocks, sections[1::2]), strict=True))
        self._kubeconfig = str(kube.environment.kubeconfig)
        self._variables = kube.environment.kubeconfig.with_name(f"{kube.namespace}.variables")
        self.read: list[str] = []

    def follow(self, section: str) -> list[str]:
        """Run the blocks of a section; what each printed."""
        self.read.append(section)
        return [self._run(block) for block in self._sections[section]]

    def unread(self) -> set[str]:
        """The sections with commands that nobody has followed."""
        return {section for section, blocks in self._sections.items() if blocks} - set(self.read)

    def _run(self, block: str) -> str:
        # One shell after the other, with the variables that the page has set so far.
        names = " ".join(re.findall(r"^([A-Z_]+)=", block, flags=re.MULTILINE))
        kept = f"declare -p {names} >> {self._variables}" if names else ""
        self._variables.touch()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{self._names}\n. {self._variables}\n{block}\n{kept}"],
            env={**os.environ, "KUBECONFIG": self._kubeconfig},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        print(f"$ {block}{done.stdout}")
        assert done.returncode == 0, f"{block}\n{done.stdout}"
        return done.stdout


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_page_for_lost_data_brings_them_back(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.sql("db-0", PEOPLE)
    kube.sql("db-0", ROWS)
    ask(kube, "before", verify=True)
    taken = wait_over(kube, "before")["backup"]
    before = account(kube, "db-0")
    reader = Reader(kube)

    newest, every = reader.follow("Which backups there are")
    assert re.search(rf'T\S+Z\ton-demand\t\d+\ttrue\t\["volume"\]\t{taken}', newest), newest
    assert re.search(rf"{taken} .* Complete", every), every

    kube.sql("db-0", "DELETE FROM media_requests; DELETE FROM users WHERE id = 'u2'; UPDATE users SET name = 'spoilt'")
    assert account(kube, "db-0") != before
    came, *_ = reader.follow("Rows are gone, or wrong")
    assert f"media_requests (2 rows) of {taken} into schema restored_rows_back_" in came
    assert account(kube, "db-0") == before

    kube.sql("db-0", "DROP TABLE error_logs")
    reader.follow("A table was dropped")
    assert account(kube, "db-0") == before
    kube.wait("MediaNestDatabase", "db", lambda it: condition_of(it or {}, "SchemaUpToDate").get("status") == "True",
              "without drift")  # fmt: skip

    late = (
        "INSERT INTO users (id, email) VALUES ('u9', 'late@example.org');"
        "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('m9', 'u9', 'Late', 'movie')"
    )
    kube.sql("db-0", f"DELETE FROM error_logs; {late}")
    look, _ = reader.follow("Everything is wrong")
    assert "condition met" in look
    assert account(kube, "db-0") == before
    for number in range(3):
        ask(kube, f"after-{number}")
        wait_over(kube, f"after-{number}")
    reader.follow("What was written between the backup and the restore")
    assert kube.sql("db-0", "SELECT title FROM media_requests ORDER BY id") == "Dune\nDune\nLate"
    kube.sql("db-0", "DELETE FROM media_requests WHERE id = 'm9'; DELETE FROM users WHERE id = 'u9'")
    assert account(kube, "db-0") == before

    # Once more, as on another day.
    kube.sql("db-0", "DELETE FROM media_requests")
    reader.follow("Rows are gone, or wrong")
    assert account(kube, "db-0") == before

    # Without the operator, as far as this database knows.
    kube.sql("db-0", "ALTER DATABASE medianest CONNECTION LIMIT 77; COMMENT ON DATABASE medianest IS 'ours';"
             " ALTER DATABASE medianest SET work_mem = '7MB'")  # fmt: skip
    own = kube.sql("db-0", _OWN)
    kube.patch("db", {"paused": True})
    kube.wait_condition("db", "Ready", "Unknown", "Paused")
    kube.sql("db-0", "DELETE FROM media_requests")
    compared, _ = reader.follow("The operator is down")
    assert f"Restored {taken}: 12 tables" in compared
    assert account(kube, "db-0") == before
    kube.patch("db", {"paused": False})
    kube.wait_ready("db")
    assert account(kube, "db-0") == before
    assert kube.sql("db-0", _OWN) == own
    assert reader.unread() == set()
