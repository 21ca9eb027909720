"""Each fault of a serving database is found within a minute, said in the right words, and gone after it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from integration.health_faults import FAULTS, Fault
from integration.serving import Serving, serving
from medianest_operator.health import vitals
from medianest_operator.kubernetes.kinds import DATABASE

PERIOD = 15
_PATIENCE = ("_IDLE_IN_TRANSACTION", "_OPEN", "_BLOCKED", "_PREPARED")
_SLOW = [fault for fault in FAULTS if fault.reason in {"QuerySlow", "ConnectSlow"}]
_OTHERS = [fault for fault in FAULTS if fault not in _SLOW]
GROUPS = [("40ms", _SLOW), ("1s", _OTHERS[::2]), ("1s", _OTHERS[1::2])]
"""What a query may take, and faults. A machine with much to do is no fault where it isn't about that."""


@pytest.mark.parametrize(("limit", "faults"), GROUPS, ids=["slow", "some", "others"])
async def test_a_fault_is_told_everywhere_and_gone_after_its_end(
    limit: str, faults: list[Fault], later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "_SLOT_BYTES", 1 << 20)
    async with serving({"monitoring": {"slowQuery": limit}}) as made:
        for fault in faults:
            await _quiet(made, later, fault)
            with fault.inject(made.database), monkeypatch.context() as patched:
                for name in _PATIENCE if fault.hasty else ():
                    patched.setattr(vitals, name, 0)
                # Whatever is looked at rarely is due. Two observations make a finding.
                later(300)
                await _probed(made, later, fault.within - 1)
                _told(made, fault)
                before, written = made.arena.status(made.key), _writes(made)
                await _probed(made, later, 8)
                after = made.arena.status(made.key)
                changed = {name: (before.get(name), after[name]) for name in after if before.get(name) != after[name]}
                assert _writes(made) == written, f"{fault.name}: the status is written again and again: {changed}"
            await _ended(made, later, fault)


async def _probed(made: Serving, later: Callable[[float], None], times: int) -> None:
    for _ in range(times):
        later(PERIOD)
        await made.arena.run(made.key)


async def _quiet(made: Serving, later: Callable[[float], None], fault: Fault) -> None:
    later(300)
    await made.arena.run(made.key)
    assert _findings(made, fault) == [], fault.name


def _told(made: Serving, fault: Fault) -> None:
    found = _findings(made, fault)
    assert len(found) == 1, (fault.name, made.arena.status(made.key).get("findings"))
    said = f"{found[0]['message']} {found[0].get('fix', '')}"
    assert all(words in said for words in fault.words), (fault.name, said)
    condition = made.arena.conditions(made.key)["Healthy"]
    told = [item for item in made.arena.events() if item["reason"] == fault.reason]
    if fault.healthy:
        assert condition == ("True", "Healthy")
        assert told == []
    else:
        assert condition[0] == "False", fault.name
        assert any(found[0]["message"] in item["message"] and item["type"] == "Warning" for item in told), fault.name
    series = {"namespace": made.key[0], "name": made.key[1], "reason": fault.reason, "object": found[0]["object"]}
    assert REGISTRY.get_sample_value("medianest_finding", series | {"level": found[0]["level"].lower()}) == 1


async def _ended(made: Serving, later: Callable[[float], None], fault: Fault) -> None:
    if fault.reason == "Deadlocks":
        # It is told of for ten minutes.
        made.database.execute("SELECT pg_stat_reset()")
    for _ in range(30):
        later(PERIOD)
        await made.arena.run(made.key)
        if _findings(made, fault) == []:
            break
    assert _findings(made, fault) == [], fault.name
    assert "FindingEnded" in {item["reason"] for item in made.arena.events()} or fault.healthy


def _findings(made: Serving, fault: Fault) -> list[dict[str, Any]]:
    known = made.arena.status(made.key).get("findings", [])
    # With no patience at all the operator's own check of the rows is a transaction that is left open.
    others = [item for item in known if "(medianest-operator)" not in item["message"]]
    return [item for item in others if item["reason"] == fault.reason and item["object"].startswith(fault.object)]


def _writes(made: Serving) -> int:
    version = made.arena.server.get(DATABASE, *made.key)["metadata"]["resourceVersion"]
    return int(version)
