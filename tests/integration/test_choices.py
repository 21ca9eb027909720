"""A person chooses the volume that a database begins with, and may take that back until its instance leads."""

from __future__ import annotations

import pytest

from integration.loops import NAMESPACE, arena
from integration.serving import serving
from integration.volumes import LABELS, history, instances, notes, pod, record, records, runs, stop, volume
from medianest_operator.kubernetes.kinds import JOB, STATEFUL_SET

BEGIN, AGAIN, BEGUN = (f"medianest.io/{name}" for name in ("begin-with", "copy-again", "begun-by-choice"))
MINUTE = "2026-01-01T00:00:00Z"


async def test_a_person_may_choose_an_older_volume() -> None:
    """What Patroni knows of the newest one goes: it would keep the chosen one from leading."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1, left_behind="2026-01-01T00:00:00Z", begin_with="")
        record(made, "", leader="db-0", optime="5000")
        record(made, "-config", history=history("db-1", "db-0"), initialize="7")
        labels = LABELS | {"app.kubernetes.io/component": "migration"}
        made.server.put(
            JOB, {"metadata": {"namespace": NAMESPACE, "name": "db-migrate-1", "labels": labels}, "spec": {}}
        )
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)
        assert records(made) == []
        # Until it leads the choice can be taken back.
        assert notes(made, AGAIN) == []
        # It says of another volume that it was migrated.
        assert list(made.server.all(JOB)) == []


async def test_a_choice_is_heard_while_another_is_waited_for() -> None:
    """What was begun stops first, so that two of them never meet without Patroni's word on who is newer."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1, left_behind="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 2})
        pod(made, 0, None)
        record(made, "", leader="db-0")
        volume(made, 1, left_behind="2026-01-01T00:00:00Z", begin_with="true")
        await runs(made, {"instances": 2})
        assert len(instances(made)) == 0
        await runs(made, {"instances": 2})
        assert len(instances(made)) == 0
        assert records(made) == ["db-rw", "db-rw-config"]
        stop(made, 0)
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)
        assert records(made) == []


async def test_of_two_choices_none_is_taken() -> None:
    async with arena() as made:
        volume(made, 0, begin_with="true")
        volume(made, 1, begin_with="true")
        key = await runs(made, {"instances": 2})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert made.conditions(key)["Ready"] == ("False", "VolumeUnavailable")
        assert "data-db-0 and data-db-1 carry the annotation" in made.message(key, "Ready")


@pytest.mark.parametrize(("begun", "given_up"), [({"begun_by_choice": MINUTE}, ["data-db-1"]), ({}, [])])
async def test_a_choice_ends_once_there_is_a_leader(begun: dict[str, str], given_up: list[str]) -> None:
    """Else it would be taken up years later. What others have is given up where the database began with the choice."""
    async with serving() as served:
        volume(served.arena, 0, begin_with="true", **begun)
        volume(served.arena, 1)
        await served.arena.run(served.key)
        assert notes(served.arena, BEGIN) == notes(served.arena, BEGUN) == []
        assert notes(served.arena, AGAIN) == given_up


@pytest.mark.parametrize(("ordinal", "begun"), [(1, {}), (0, {}), (0, {"begun_by_choice": MINUTE})])
async def test_it_is_told_that_a_choice_came_too_late(ordinal: int, begun: dict[str, str]) -> None:
    """A database that runs begins with nothing; the annotation goes, and would go without a word."""
    async with serving() as served:
        for number in range(2):
            volume(served.arena, number, **({"begin_with": "true"} | begun if number == ordinal else {}))
        await served.arena.run(served.key)
        assert notes(served.arena, BEGIN) == []
        told = [event["message"] for event in served.arena.events() if event["reason"] == "ChoiceIgnored"]
        if begun:
            assert told == []
        else:
            (message,) = told
            assert f"was removed from data-db-{ordinal}: db-0 leads" in message
            assert "hibernated" in message


async def test_what_was_given_up_and_leads_is_not_given_up_any_more() -> None:
    """A person began with another one, and later with this one after all."""
    async with serving() as served:
        volume(served.arena, 0, copy_again=MINUTE, begin_with="true", begun_by_choice=MINUTE)
        volume(served.arena, 1)
        await served.arena.run(served.key)
        assert notes(served.arena, AGAIN) == ["data-db-1"]


async def test_a_choice_can_be_taken_back_before_it_leads() -> None:
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1, begin_with="true")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)
        await runs(made, {"instances": 2, "hibernate": True})
        volume(made, 1, left_behind="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1)
        assert notes(made, AGAIN) == []


@pytest.mark.parametrize("word", ["false", "no", "data-db-1"])
async def test_another_word_than_true_is_no_choice(word: str) -> None:
    async with arena() as made:
        volume(made, 0, led_since=MINUTE)
        volume(made, 1, left_behind=MINUTE, begin_with=word)
        await runs(made, {"instances": 2})
        assert instances(made) == range(1)


@pytest.mark.parametrize("noted", [True, False])
async def test_one_volume_can_be_looked_into_alone(noted: bool) -> None:
    """The one that leads is its second instance: the first is not copied over for the sake of its number."""
    async with arena() as made:
        volume(made, 0)
        volume(made, 1, begin_with="true")
        await runs(made, {"instances": 1})
        assert instances(made) == range(1, 2)
        pod(made, 1, "primary")
        # Nothing old can be elected: were it wanted, the other could join.
        volume(made, 0, **({"copy_again": MINUTE} if noted else {}))
        volume(made, 1, **({} if noted else {"begin_with": "true", "begun_by_choice": MINUTE}))
        await runs(made, {"instances": 1})
        assert instances(made) == range(1, 2)
        await runs(made, {"instances": 2})
        assert instances(made) == range(2)


async def test_a_leader_whose_choice_was_taken_back_too_late_may_restart() -> None:
    async with arena() as made:
        volume(made, 0, left_behind=MINUTE)
        volume(made, 1, begin_with="true")
        await runs(made, {"instances": 2})
        pod(made, 1, None)
        volume(made, 1, begun_by_choice=MINUTE, led_since="2026-01-01T00:00:09Z")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)


async def test_it_is_said_who_begins_and_that_the_others_come_later() -> None:
    async with arena() as made:
        volume(made, 0, led_since=MINUTE)
        volume(made, 1, left_behind=MINUTE, begin_with="true")
        await runs(made, {"instances": 2, "hibernate": True})
        await runs(made, {"instances": 2})
        pod(made, 1, None)
        key = await runs(made, {"instances": 2})
        assert "db-1 begins alone" in made.message(key, "Ready")
        assert "the others join once it leads" in made.message(key, "Ready")


async def test_a_choice_that_is_being_carried_out_can_be_taken_back() -> None:
    """What Patroni wrote of it meanwhile isn't believed: the volumes are read."""
    async with arena() as made:
        volume(made, 0, led_since=MINUTE)
        volume(made, 1, left_behind=MINUTE, begin_with="true")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)
        assert notes(made, BEGUN) == ["data-db-1"]
        pod(made, 1, None)
        record(made, "", leader="db-1")
        record(made, "-config", history=history("db-1"))
        volume(made, 1, left_behind=MINUTE, begun_by_choice=MINUTE)
        await runs(made, {"instances": 2})
        assert len(instances(made)) == 0
        stop(made, 1)
        await runs(made, {"instances": 2})
        assert len(instances(made)) == 0
        assert (records(made), notes(made, BEGUN)) == ([], [])
        assert len(list(made.server.all(JOB))) == 2


async def test_another_may_be_chosen_while_the_first_choice_is_carried_out() -> None:
    async with arena() as made:
        volume(made, 0, led_since=MINUTE)
        volume(made, 1, begin_with="true")
        await runs(made, {"instances": 3})
        pod(made, 1, None)
        volume(made, 1, begun_by_choice=MINUTE)
        volume(made, 2, begin_with="true")
        await runs(made, {"instances": 3})
        assert len(instances(made)) == 0
        stop(made, 1)
        await runs(made, {"instances": 3})
        assert instances(made) == range(2, 3)
        assert notes(made, BEGUN) == ["data-db-2"]


async def test_a_choice_that_is_taken_back_too_late_gives_nothing_up() -> None:
    """The chosen one leads already. A replica of the other volume would be rewound, before anybody could compare it."""
    async with serving() as served:
        made, spec = served.arena, {"instances": 2}
        volume(made, 0, begun_by_choice=MINUTE)
        volume(made, 1, left_behind=MINUTE)
        wanted = made.make("db", spec, status=made.status(served.key))
        for _ in range(2):
            await made.run(wanted)
            assert instances(made) == range(1)
            assert made.conditions(wanted)["Ready"] == ("False", "Diverged")
            assert "taken back too late" in made.message(wanted, "Ready")
            assert (notes(made, AGAIN), notes(made, BEGUN)) == ([], ["data-db-0"])
        # What it says helps.
        volume(made, 0, begun_by_choice=MINUTE, begin_with="true")
        for _ in range(2):
            await made.run(wanted)
        assert instances(made) == range(2)
        assert (notes(made, AGAIN), notes(made, BEGUN)) == (["data-db-1"], [])


async def test_a_note_on_another_than_the_leader_keeps_nobody_away() -> None:
    """Somebody put it there, or brought a claim back with it."""
    async with serving() as served:
        made = served.arena
        volume(made, 0)
        volume(made, 1, left_behind=MINUTE, begun_by_choice=MINUTE)
        wanted = made.make("db", {"instances": 2}, status=made.status(served.key))
        for _ in range(2):
            await made.run(wanted)
        assert instances(made) == range(2)
        assert (notes(made, AGAIN), notes(made, BEGUN)) == ([], [])


async def test_a_choice_of_the_one_that_is_waited_for_is_heard() -> None:
    """What Patroni knows of another, which keeps it from being elected, has to go: it stops and begins again."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 1})
        pod(made, 0, None)
        record(made, "", optime="5000")
        volume(made, 0, begin_with="true")
        await runs(made, {"instances": 1})
        assert len(instances(made)) == 0
        stop(made, 0)
        await runs(made, {"instances": 1})
        assert instances(made) == range(1)
        assert records(made) == []
        await runs(made, {"instances": 1})
        assert instances(made) == range(1)
