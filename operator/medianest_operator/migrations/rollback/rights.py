"""The statements that bring rights, settings and comments back to what a description says. Pure.

No backup has all of them: pg_dump without --create writes neither the database's settings nor what is the built-in
default, and a restore doesn't take away what was granted meanwhile. Here each line that the second description has too
many is turned round, and each that it lacks is said again. Rights that somebody else gave stay: only their grantor can
take them back.
"""

from __future__ import annotations

import re
from typing import Final

from medianest_operator.migrations.run.description import Description

_GRANT: Final = re.compile(r"^(?P<head>.*?)GRANT (?P<what>.+) TO (?P<whom>[^ ].*?)(?: WITH GRANT OPTION)?;$")
_REVOKE: Final = re.compile(r"^(?P<head>.*?)REVOKE (?:GRANT OPTION FOR )?(?P<what>.+) FROM (?P<whom>[^ ].*);$")
_SETTING: Final = re.compile(r"^(?P<head>ALTER (?:DATABASE|ROLE) .+? SET) (?P<name>[\w.\"]+) TO .*;$")
_COMMENT: Final = re.compile(r"^(?P<head>COMMENT ON .+? IS) '.*;$", re.DOTALL)
_OF_OTHERS: Final = "SET SESSION AUTHORIZATION"
# What initdb says of it, and pg_dump therefore doesn't (PostgreSQL's source, pg_dump.c, getNamespaces).
_BUILT_IN: Final = {"COMMENT ON SCHEMA public IS": "'standard public schema'"}
# Default privileges first: they decide what is made from then on.
_KINDS: Final = ("DEFAULT ACL ", "DATABASE PROPERTIES ", "ACL ", "COMMENT ")
_DATABASE: Final = ("ACL DATABASE ", "COMMENT DATABASE ")


def put_back(before: Description, after: Description, *, locked_out: bool) -> list[str]:
    """The statements that lead from `after` back to `before`, in order, each to be run on its own.

    Args:
        locked_out: both were described with writers locked out. Otherwise the rights on the database itself are left as
            they are: what differs there somebody else has granted.
    """
    statements: list[str] = []
    left = () if locked_out else _DATABASE
    for kind in _KINDS:
        for label in sorted(before.keys() | after.keys()):
            if label.startswith(kind) and not label.startswith(left) and before.get(label) != after.get(label):
                # The rights of what is new go with it, or stay with it.
                if (of := label.partition(" ")[2]) in after and of not in before:
                    continue
                statements += _of_entry(kind, before.get(label, ""), after.get(label, ""))
    return statements


def _of_entry(kind: str, was: str, now: str) -> list[str]:
    if _OF_OTHERS in was or _OF_OTHERS in now:
        return []
    if kind == "COMMENT ":
        match = _COMMENT.match(now)
        return [was] if was else [f"{match['head']} {_BUILT_IN.get(match['head'], 'NULL')}"] if match else []
    old, new = was.split("\n"), now.split("\n")
    turned = [_turned(line) for line in new if line not in old]
    return [
        line for line in [*sorted(filter(None, turned), reverse=True), *(li for li in old if li not in new)] if line
    ]


def _turned(line: str) -> str:
    """A line's opposite; empty where it has none."""
    if match := _SETTING.match(line):
        return f"{match['head'].removesuffix(' SET')} RESET {match['name']}"
    if match := _GRANT.match(line):
        return f"{match['head']}REVOKE {match['what']} FROM {match['whom']}"
    if match := _REVOKE.match(line):
        return f"{match['head']}GRANT {match['what']} TO {match['whom']}"
    return ""
