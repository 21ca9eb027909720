"""The cache: the newest wins, nothing that was made or deleted meanwhile is lost, and no object breaks it."""

from __future__ import annotations

import pytest

from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.kinds import BACKUP, DATABASE, POD, SECRET, Kind, Manifest

A, B = ("ns", "a"), ("ns", "b")


def item(name: str, version: int | str, **metadata: object) -> Manifest:
    return {"metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version), **metadata}}


def child(name: str, version: int, database: str = "a", **metadata: object) -> Manifest:
    return item(name, version, labels={"medianest.io/database": database}, **metadata)


def test_the_newest_is_kept_and_what_is_gone_is_dropped() -> None:
    cache = Cache()
    assert cache.put(DATABASE, item("a", 5)) == {A}
    assert not cache.put(DATABASE, item("a", 4))
    assert not cache.put(DATABASE, item("a", 6))
    cache.put(DATABASE, item("b", 1))
    assert cache.replace(DATABASE, [item("a", 7)], "8") == {B}
    assert cache.get(DATABASE, *B) is None


def test_what_was_made_while_a_list_was_read_stays() -> None:
    cache = Cache()
    cache.put(SECRET, child("a-ca", 11))
    assert not cache.replace(SECRET, [], "10")
    assert cache.get(SECRET, "ns", "a-ca") is not None
    assert cache.replace(SECRET, [], "12") == {A}


def test_what_was_deleted_while_a_list_was_read_does_not_come_back() -> None:
    cache = Cache()
    cache.put(DATABASE, item("a", 5))
    assert cache.remove(DATABASE, item("a", 9)) == {A}
    assert not cache.replace(DATABASE, [item("a", 5)], "7")
    assert cache.get(DATABASE, *A) is None
    assert cache.put(DATABASE, item("a", 20, uid="another of that name")) == {A}


def test_only_the_listed_namespace_is_compared() -> None:
    cache = Cache()
    cache.put(DATABASE, item("a", 5))
    assert not cache.replace(DATABASE, [], "9", namespace="other")
    assert cache.get(DATABASE, *A) is not None


def test_a_child_that_is_labelled_for_another_database_leaves_the_first() -> None:
    cache = Cache()
    cache.put(POD, child("a-0", 1))
    assert cache.put(POD, child("a-0", 2, database="b")) == {A, B}
    assert cache.of_database(POD, A) == []
    assert [pod["metadata"]["name"] for pod in cache.of_database(POD, B)] == ["a-0"]
    cache.remove(POD, child("a-0", 3, database="b"))
    assert cache.of_database(POD, A) == cache.of_database(POD, B) == []


def test_a_ticking_wal_position_is_no_news() -> None:
    cache = Cache()

    def pod(version: int, status: str) -> Manifest:
        return child("a-0", version, annotations={"status": status})

    assert cache.put(POD, pod(1, '{"role":"primary","xlog_location":1}'))
    assert not cache.put(POD, pod(2, '{"role":"primary","xlog_location":2}'))
    assert cache.put(POD, pod(3, '{"role":"replica","xlog_location":2}'))


@pytest.mark.parametrize(
    "status",
    ["[]", "{", "null", "1", '"x"', "", "[" * 20_000, '{"role": ' * 20_000, '{"role": ["primary"]}', "\x00", "{" * 9],
)
def test_whatever_stands_in_a_pods_annotation_harms_nobody(status: str) -> None:
    cache = Cache()
    assert cache.put(POD, child("a-0", 1, annotations={"status": status})) == {A}


@pytest.mark.parametrize(
    ("kind", "manifest"),
    [
        (BACKUP, item("x", 1)),
        (BACKUP, item("x", 1) | {"spec": None}),
        (SECRET, item("x", 1, labels=None)),
        (SECRET, item("x", "not-a-number")),
        (POD, {"metadata": {"namespace": "ns", "name": "x"}}),
        (POD, item("x", 1, annotations=None) | {"spec": {"containers": None}, "status": None}),
    ],
)
def test_odd_objects_are_kept_and_belong_to_nobody(kind: Kind, manifest: Manifest) -> None:
    cache = Cache()
    assert cache.put(kind, manifest) == set()
    assert cache.get(kind, "ns", "x") is not None


def test_the_revision_of_a_database_follows_its_children() -> None:
    cache = Cache()
    cache.put(DATABASE, item("a", 1))
    before = cache.revision(A)
    cache.put(SECRET, child("a-ca", 2))
    assert cache.revision(A) > before
    assert cache.revision(B) == 0


def test_a_seldom_read_object_comes_back_as_it_was() -> None:
    cache = Cache()
    secret = child("a-app", 3, annotations={"ü": "é"}) | {
        "data": {"password": "eA=="},
        "type": "Opaque",
        "more": [1, None],
    }
    cache.put(SECRET, secret)
    assert cache.get(SECRET, "ns", "a-app") == secret
    assert cache.of_database(SECRET, A) == [secret]
    assert list(cache.all(SECRET)) == [secret]


def test_an_object_that_only_has_a_newer_version_touches_nobody() -> None:
    cache = Cache()
    cache.put(SECRET, child("a-app", 3))
    assert not cache.put(SECRET, child("a-app", 4))
    assert cache.get(SECRET, "ns", "a-app") == child("a-app", 4)
    assert cache.put(SECRET, child("a-app", 5) | {"data": {}}) == {A}


def test_an_object_that_lost_its_label_for_a_moment_comes_back() -> None:
    cache = Cache()
    cache.put(SECRET, child("a-app", 3))
    # A watch by label tells of a lost label as of a deletion, at the version of the change.
    assert cache.remove(SECRET, child("a-app", 4)) == {A}
    assert not cache.put(SECRET, child("a-app", 3))
    assert cache.put(SECRET, child("a-app", 5)) == {A}
    assert cache.get(SECRET, "ns", "a-app") == child("a-app", 5)


def test_what_a_list_no_longer_has_is_not_brought_back_by_what_happened_before_it() -> None:
    cache = Cache()
    cache.put(SECRET, child("a-app", 3))
    assert cache.replace(SECRET, [], "9") == {A}
    assert not cache.put(SECRET, child("a-app", 5))
    assert cache.put(SECRET, child("a-app", 10)) == {A}
