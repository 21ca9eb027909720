"""What squawk finds in a migration, as far as it matters here: statements that hold up others, or that break clients.

squawk (https://squawkhq.com/docs/rules) is a program; it knows the file and nothing of the database. Its findings about
tables that aren't live are dropped, the others are told with the live size of what is locked. Style, its word on
dropped things (ours names the rows) and on timeouts (the run sets them) are left out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from medianest_operator.migrations.lint.syntax import Node, ParsedStatement
from medianest_operator.migrations.script import in_ascii

PROGRAM = "squawk"
SERVER_VERSION = "15.0"
# It reads megabytes in seconds.
_TIME_LIMIT = 60.0

_WHOLE_TIME = "until its transaction ends"
# Rule -> what to tell. {table} comes with its size. What is not here is left out.
WORDS = {
    "require-concurrent-index-creation": "nobody can write to {table} while the index is built. CREATE INDEX"
    " CONCURRENTLY, in a migration of its own, lets writers go on.",
    "require-concurrent-index-deletion": f"locks the index's table against everybody {_WHOLE_TIME}. DROP INDEX"
    " CONCURRENTLY, in a migration of its own, lets them go on.",
    "require-concurrent-reindex": "nobody can write to the table while its indexes are rebuilt. REINDEX CONCURRENTLY,"
    " in a migration of its own, lets writers go on.",
    "require-concurrent-partition-detach": "locks {table} against everybody " + _WHOLE_TIME + ". DETACH PARTITION ..."
    " CONCURRENTLY, in a migration of its own, lets them go on.",
    "adding-foreign-key-constraint": "nobody can write to {table} or to the table referred to while all rows are"
    " compared. Add it NOT VALID, and VALIDATE CONSTRAINT in a later migration.",
    "disallowed-unique-constraint": "nobody can read or write {table} while the index is built. CREATE UNIQUE INDEX"
    " CONCURRENTLY in a migration of its own, then ADD CONSTRAINT ... USING INDEX.",
    "adding-serial-primary-key-field": "nobody can read or write {table} while its key's index is built. CREATE UNIQUE"
    " INDEX CONCURRENTLY in a migration of its own, then ADD CONSTRAINT ... USING INDEX.",
    "constraint-missing-not-valid": "locks {table} while all rows are checked. Add the constraint NOT VALID, and"
    " VALIDATE CONSTRAINT in a later migration.",
    "adding-not-nullable-field": "nobody can read or write {table} while all rows are looked through for NULL. Add"
    " CHECK (... IS NOT NULL) NOT VALID, validate it in a later migration, and then SET NOT NULL is quick.",
    "adding-required-field": "fails if {table} has any row then, for the new column is NOT NULL and has no default."
    " Give it a default, or fill it before SET NOT NULL.",
    "adding-field-with-default": "nobody can read or write {table} while it is rewritten with a default that differs"
    " from row to row. Add the column without, then fill it.",
    "changing-column-type": "nobody can read or write {table} while it is rewritten, unless the new type is stored as"
    " the old one is. A new column beside the old one can be filled meanwhile.",
    "renaming-column": "an application that still runs knows the column of {table} by its old name only, and fails. Add"
    " the new column beside it and drop the old one later.",
    "renaming-table": "an application that still runs knows {table} by its old name only, and fails. Leave a view with"
    " the old name behind.",
    "ban-truncate-cascade": "also empties every table that refers to {table}.",
    "ban-alter-domain-with-add-constraint": "locks every table with a column of this domain while all its rows are"
    " checked. Add the constraint NOT VALID, and validate it in a later migration.",
}
# The finding on the right says less than the one on the left, of the same statement.
_COVERED_BY = {
    "constraint-missing-not-valid": {
        "adding-foreign-key-constraint",
        "disallowed-unique-constraint",
        "adding-serial-primary-key-field",
    },
}


class Remark(NamedTuple):
    """One of squawk's findings: its rule and the statement that it is about."""

    rule: str
    statement: ParsedStatement


class SquawkProblem(Exception):
    """squawk could not be run, or what it said could not be read; the text says which."""


def program() -> str | None:
    """The program's path: beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name(PROGRAM)
    return str(beside) if beside.exists() else shutil.which(PROGRAM)


def remarks(squawk: str, statements: Sequence[ParsedStatement], one_transaction: bool) -> Iterator[Remark]:
    """What squawk says of a file, once a rule and statement, in the order of statements.

    Raises:
        SquawkProblem: see there.
    """
    # It has nothing to say of rows, and they are what makes a file large.
    asked = [statement for statement in statements if not statement.is_data]
    if not asked:
        return
    # Positions count bytes; in ASCII they count characters too.
    texts = [in_ascii(statement.text) + ";\n" for statement in asked]
    starts = list(accumulate(map(len, texts), initial=0))
    text = "".join(texts)
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    found: dict[int, set[str]] = {}
    for item in _run(squawk, text, one_transaction):
        if item["rule_name"] in WORDS:
            index = bisect_right(starts, lines[item["line"]] + item["column"]) - 1
            found.setdefault(index, set()).add(item["rule_name"])
    for index in sorted(found):
        for rule in WORDS:
            if rule in found[index] and not found[index] & _COVERED_BY.get(rule, set()):
                yield Remark(rule, asked[index])


def locked_relation(statement: ParsedStatement) -> Node | None:
    """The table that a statement is about, if it names one."""
    node = statement.node
    relation = node.get("relation")
    if relation is None and node.get("relations"):
        relation = node["relations"][0].get("RangeVar")
    return relation if isinstance(relation, dict) else None


def _run(squawk: str, text: str, one_transaction: bool) -> list[dict[str, Any]]:
    command = [squawk, "--reporter=json", f"--pg-version={SERVER_VERSION}"]
    if one_transaction:
        command.append("--assume-in-transaction")
    try:
        # At the root no folder above brings a configuration of its own.
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd="/", timeout=_TIME_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SquawkProblem(f"{PROGRAM} could not be run: {error}") from error
    try:
        # 1 says that there are findings.
        found = json.loads(done.stdout) if done.returncode in (0, 1) else None
    except ValueError:
        found = None
    if not isinstance(found, list):
        said = " ".join((done.stderr or done.stdout).split())[:200]
        raise SquawkProblem(f"{PROGRAM} ended with {done.returncode} and said: {said}")
    return found
