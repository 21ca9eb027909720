"""Clusters side by side never share a name, an address or a port."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.addresses import MAX_CLUSTERS, MAX_NODES, Addresses, allocate, allocated, release
from cluster.errors import ClusterError

numbers = st.integers(0, MAX_CLUSTERS - 1)


@given(numbers)
def test_ranges_of_a_cluster_do_not_overlap(number: int) -> None:
    addresses = Addresses("a", number)
    ranges = [addresses.fabric, addresses.services, *(addresses.node(i).pods for i in range(1, MAX_NODES + 1))]
    assert not any(one.overlaps(other) for one, other in combinations(ranges, 2))
    assert all(part.subnet_of(addresses.network) for part in ranges)
    assert all(addresses.node(i).pods.subnet_of(addresses.pods) for i in range(1, MAX_NODES + 1))


@given(numbers)
def test_every_machine_of_a_cluster_has_an_address_of_its_own(number: int) -> None:
    addresses = Addresses("a", number)
    machines = [addresses.control_plane, *(addresses.node(i).address for i in range(1, MAX_NODES + 1))]
    assert len(set(machines)) == len(machines)
    assert all(machine in addresses.fabric for machine in machines)


@given(numbers, numbers)
def test_two_clusters_do_not_meet(one: int, other: int) -> None:
    first, second = Addresses("a", one), Addresses("b", other)
    if one != other:
        assert not first.network.overlaps(second.network)
        assert first.preferred_port != second.preferred_port
    assert first.namespace != second.namespace


def test_a_name_with_a_number_is_not_another_clusters_node() -> None:
    assert Addresses("a", 0).node(1).namespace != Addresses("a-1", 1).namespace
    assert Addresses("a", 0).node(1).cgroup != Addresses("a-node1", 1).node(1).cgroup


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "a/b", "a" * 32, "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="can't name a cluster"):
        Addresses(name, 0)


@pytest.mark.parametrize("index", [0, MAX_NODES + 1])
def test_a_node_outside_of_the_range_is_refused(index: int) -> None:
    with pytest.raises(ClusterError, match=f"there is no node {index}"):
        Addresses("a", 0).node(index)


def test_a_cluster_keeps_its_number_and_gives_it_back(tmp_path: Path) -> None:
    assert [allocate(name, tmp_path).number for name in ("a", "b", "a", "c")] == [0, 1, 0, 2]
    release("b", tmp_path)
    assert allocated(tmp_path) == {"a": 0, "c": 2}
    assert allocate("d", tmp_path).number == 1
    release("never-there", tmp_path)


def test_clusters_that_start_at_once_get_different_numbers(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: allocate(f"c{i}", tmp_path).number, range(16)))
    assert sorted(found) == list(range(16))


def test_a_machine_that_is_full_says_so_and_stays_usable(tmp_path: Path) -> None:
    for number in range(MAX_CLUSTERS):
        allocate(f"c{number}", tmp_path)
    with pytest.raises(ClusterError, match="64 clusters at most"):
        allocate("one-more", tmp_path)
    assert "one-more" not in allocated(tmp_path)


def test_a_damaged_allocation_is_named(tmp_path: Path) -> None:
    (tmp_path / "allocation.json").write_text("{")
    with pytest.raises(ClusterError, match=r"allocation\.json is damaged"):
        allocate("a", tmp_path)
