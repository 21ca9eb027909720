"""What the cluster's programs are told, and the certificates they show each other."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path

import pytest

from cluster import components, manifests
from cluster.addresses import Addresses
from cluster.layout import Layout
from cluster.pki import Authority, write_key_pair, write_kubeconfig
from cluster.record import Options, Record


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Addresses("a", 3), tmp_path / "root", tmp_path / "run")


def test_nodes_share_nothing_that_must_be_their_own(layout: Layout) -> None:
    nodes = [layout.node(layout.addresses.node(index)) for index in (1, 2)]
    for node in nodes:
        components.write_node_config(node)
    kubelets = [json.loads(node.config("kubelet.json").read_text()) for node in nodes]
    assert kubelets[0]["cgroupRoot"] != kubelets[1]["cgroupRoot"]
    assert kubelets[0]["tlsCertFile"] != kubelets[1]["tlsCertFile"]
    subnets = [
        json.loads(node.config("cni/10-pods.conflist").read_text())["plugins"][0]["ipam"]["ranges"] for node in nodes
    ]
    assert subnets[0] != subnets[1]
    assert not set(nodes[0].mounts.values()) & set(nodes[1].mounts.values())
    assert set(nodes[0].mounts) == set(nodes[1].mounts)


def test_a_pods_name_server_is_the_service_that_the_cluster_starts_with(layout: Layout) -> None:
    kubelet = components.kubelet_config(layout.node(layout.addresses.node(1)))
    services = [item for item in manifests.initial(layout.addresses, Options())["items"] if item["kind"] == "Service"]
    assert [service["spec"]["clusterIP"] for service in services] == kubelet["clusterDNS"]


@pytest.mark.parametrize("volumes", [True, False])
def test_a_default_storage_class_is_there_when_asked_for(layout: Layout, volumes: bool) -> None:
    items = manifests.initial(layout.addresses, Options(volumes=volumes))["items"]
    classes = [item for item in items if item["kind"] == "StorageClass"]
    assert [c["metadata"]["annotations"] for c in classes] == (
        [{"storageclass.kubernetes.io/is-default-class": "true"}] if volumes else []
    )
    drivers = [item["metadata"]["name"] for item in items if item["kind"] == "CSIDriver"]
    assert drivers == [c["provisioner"] for c in classes]


def test_no_flag_is_given_twice_to_the_api_server(layout: Layout) -> None:
    flags = [word.split("=")[0] for word in components.api_server(Path("/bin/k"), layout).argv if word.startswith("-")]
    assert len(flags) == len(set(flags))


def test_a_server_shows_what_its_authority_vouches_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create()
    authority.issue("server", "server", names=["s3.s3.svc", "127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

        def visit(name: str) -> None:
            with socket.create_connection(listener.getsockname()) as plain:
                trusting.wrap_socket(plain, server_hostname=name).close()

        visit("s3.s3.svc")
        visit("127.0.0.1")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            visit("another.svc")
        thread.join()


def test_a_second_start_keeps_certificates_and_keys(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for _ in range(2):
        authority.create()
        authority.issue("admin", "admin", "system:masters")
        write_key_pair(tmp_path, "tokens")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_nobody_else_on_the_machine_can_read_a_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create()
    authority.issue("admin", "admin")
    write_key_pair(tmp_path, "tokens")
    write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", tmp_path, "admin")
    secret = [*tmp_path.glob("*.key"), tmp_path / "kubeconfig"]
    assert len(secret) == 4
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}


def test_a_record_survives_being_written(tmp_path: Path) -> None:
    record = Record(Options(3, network_policy=True), {"kubenode": tmp_path / "kubenode"})
    record.write(tmp_path / "cluster.json")
    assert Record.read(tmp_path / "cluster.json") == record
    assert not record.usable()
    (tmp_path / "kubenode").touch()
    assert record.usable()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"options": {"colour": 1}, "programs": {}}', "null"])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_text(content)
    assert Record.read(tmp_path / "cluster.json") is None


def test_asking_again_only_adds() -> None:
    assert Options(3, network_policy=True) | Options(1, s3=True) == Options(3, network_policy=True, s3=True)
