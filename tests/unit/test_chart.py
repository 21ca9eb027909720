"""The chart: what it renders is valid, restricted and asks for no more than it needs; bad values are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helm_python.errors import HelmError
from render import chart_manifests, install_manifests

from medianest_operator.kubernetes import kinds
from medianest_operator.naming import Names
from medianest_operator.resources import rbac
from unit.kubernetes_rules import assert_restricted, assert_valid, permissions, pod_specs

OWNER = {"apiVersion": "medianest.io/v1alpha1", "kind": "MediaNestDatabase", "name": "db", "uid": "1"}
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "namespaced": {"namespaces": ["media", "media-staging"]},
    "everything": {
        "replicas": 3,
        "image": {"repository": "images.example/medianest-operator", "tag": "9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "images"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"example/note": "1"},
        "deletionProtection": False,
        "metricsService": False,
        "roles": False,
    },
}
PEOPLE = {"medianest-viewer", "medianest-backup-operator", "medianest-restorer"}
"""Roles that the admin binds, not the chart."""
READ = ("get", "list", "watch")


@pytest.fixture(params=list(VALUES))
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return chart_manifests(VALUES[request.param])


def of_kind(manifests: list[dict[str, Any]], *wanted: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] in wanted]


def rules(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for role in of_kind(manifests, "Role", "ClusterRole") for rule in role["rules"]]


def test_every_object_is_valid(manifests: list[dict[str, Any]]) -> None:
    assert of_kind(manifests, "Deployment")
    for manifest in manifests:
        assert_valid(manifest)


def test_install_manifest_is_valid_and_in_order() -> None:
    manifests = install_manifests()
    for manifest in manifests:
        assert_valid(manifest)
    # What the others live in comes first.
    assert [manifest["kind"] for manifest in manifests[:2]] == ["Namespace", "CustomResourceDefinition"]


def test_pods_are_restricted(manifests: list[dict[str, Any]]) -> None:
    pods = [pod for manifest in manifests for pod in pod_specs(manifest)]
    assert len(pods) == 1
    assert_restricted(pods[0])


def test_pods_have_limits_and_probes(manifests: list[dict[str, Any]]) -> None:
    (container,) = next(pod for manifest in manifests for pod in pod_specs(manifest))["containers"]
    assert container["resources"]["limits"]["memory"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    ports = {port["name"] for port in container["ports"]}
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} <= ports


def test_no_rule_has_a_wildcard(manifests: list[dict[str, Any]]) -> None:
    for rule in rules(manifests):
        assert not [value for values in rule.values() for value in values if "*" in value], rule


def test_all_rules_are_bound(manifests: list[dict[str, Any]]) -> None:
    def name(manifest: dict[str, Any]) -> tuple[str | None, str]:
        return manifest["metadata"].get("namespace"), manifest["metadata"]["name"]

    roles = {name(role) for role in of_kind(manifests, "Role", "ClusterRole")}
    bindings = of_kind(manifests, "RoleBinding", "ClusterRoleBinding")
    # The instances' role is bound by the operator, database by database; those for people by the admin.
    bound = {role for role in roles if role[1] not in {"medianest-instance", *PEOPLE}}
    assert bound == {(binding["metadata"].get("namespace"), binding["roleRef"]["name"]) for binding in bindings}
    for binding in bindings:
        assert [subject["namespace"] for subject in binding["subjects"]] == ["medianest-system"]


def test_namespaced_needs_no_cluster_role() -> None:
    manifests = chart_manifests(VALUES["namespaced"])
    assert not of_kind(manifests, "ClusterRole", "ClusterRoleBinding")
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind(manifests, "Role")}
    assert roles == {
        ("medianest-system", "medianest-operator-lease"),
        *(
            (place, name)
            for place in ("media", "media-staging")
            for name in ("medianest-operator", "medianest-instance", *PEOPLE)
        ),
    }
    (container,) = next(pod for manifest in manifests for pod in pod_specs(manifest))["containers"]
    assert {"name": "WATCH_NAMESPACES", "value": "media,media-staging"} in container["env"]


@pytest.mark.parametrize(("values", "kind"), [("default", "ClusterRole"), ("namespaced", "Role")])
def test_the_operator_binds_the_instances_role_and_holds_none_of_its_writes(values: str, kind: str) -> None:
    manifests = chart_manifests(VALUES[values])
    (container,) = next(pod for manifest in manifests for pod in pod_specs(manifest))["containers"]
    told = next(item["value"] for item in container["env"] if item["name"] == "INSTANCE_ROLE")
    (_, binding) = rbac.access(Names("media", "db"), OWNER, told)
    names = {(role["kind"], role["metadata"]["name"]) for role in of_kind(manifests, "Role", "ClusterRole")}
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in names
    for role in of_kind(manifests, "Role", "ClusterRole"):
        if role["metadata"]["name"] != "medianest-operator":
            continue
        allowed = permissions(role["rules"])
        writes = {"create", "patch", "update", "delete", "deletecollection", "escalate"}
        for plural, may in (("endpoints", {"delete"}), ("roles", set()), ("clusterroles", set()), ("pods", {"delete"})):
            assert {verb for _, resource, verb in allowed if resource == plural} & writes == may
        assert [rule for rule in role["rules"] if "bind" in rule["verbs"]] == [
            {
                "apiGroups": ["rbac.authorization.k8s.io"],
                "resources": [f"{kind.lower()}s"],
                "resourceNames": ["medianest-instance"],
                "verbs": ["bind"],
            }
        ]


def test_deleting_the_definition_is_refused_while_databases_may_be_protected() -> None:
    policies = {item["metadata"]["name"]: item for item in of_kind(chart_manifests(), "ValidatingAdmissionPolicy")}
    assert (
        "medianest.io/allow-deletion=true"
        in policies["medianest-definition-protection"]["spec"]["validations"][0]["message"]
    )


def test_operator_can_watch_all_that_it_caches() -> None:
    own = next(r for r in of_kind(chart_manifests(), "ClusterRole") if r["metadata"]["name"] == "medianest-operator")
    allowed = permissions(own["rules"])
    for kind in (*kinds.OWN, *kinds.CHILDREN):
        assert {(kind.group, kind.plural, verb) for verb in ("list", "watch")} <= allowed, kind


def test_operator_cannot_touch_what_is_not_its_business() -> None:
    own = next(r for r in of_kind(chart_manifests(), "ClusterRole") if r["metadata"]["name"] == "medianest-operator")
    allowed = permissions(own["rules"])
    assert not {entry for entry in allowed if entry[1] in {"nodes", "namespaces", "clusterroles", "pods/exec"}}
    assert not {verb for _, resource, verb in allowed if resource == "secrets"} & {
        "delete",
        "update",
        "deletecollection",
    }
    # A spec is the admin's.
    assert {verb for _, resource, verb in allowed if resource == "medianestdatabases"} == {"get", "list", "watch"}


def test_the_operator_asks_for_no_operation_itself() -> None:
    """It only takes away those that have had their time."""
    own = next(r for r in of_kind(chart_manifests(), "ClusterRole") if r["metadata"]["name"] == "medianest-operator")
    found = {verb for _, resource, verb in permissions(own["rules"]) if resource == kinds.OPERATION.plural}
    assert found == {"get", "list", "watch", "delete"}


@pytest.mark.parametrize("values", ["default", "namespaced"])
def test_people_look_take_backups_and_restore_by_roles_of_their_own(values: str) -> None:
    kind = "Role" if values == "namespaced" else "ClusterRole"
    roles = {role["metadata"]["name"]: role for role in of_kind(chart_manifests(VALUES[values]), kind)}
    changes = {
        name: {(resource, verb) for _, resource, verb in permissions(roles[name]["rules"]) if verb not in READ}
        for name in PEOPLE
    }
    backups = {(kinds.BACKUP.plural, verb) for verb in ("create", "delete")}
    assert changes == {
        "medianest-viewer": set(),
        "medianest-backup-operator": backups,
        "medianest-restorer": backups | {(kinds.OPERATION.plural, verb) for verb in ("create", "delete")},
    }
    for name in PEOPLE:
        allowed = permissions(roles[name]["rules"])
        assert {(kind.group, kind.plural, verb) for kind in kinds.OWN for verb in READ} <= allowed
        assert {group for group, _, _ in allowed} == {"medianest.io"}


def test_kubernetes_own_roles_get_what_fits_them() -> None:
    mark = "rbac.authorization.k8s.io/aggregate-to-"
    found = {
        role["metadata"]["name"]: {key.removeprefix(mark) for key in role["metadata"]["labels"] if key.startswith(mark)}
        for role in of_kind(chart_manifests(), "ClusterRole")
    }
    assert {name: whom for name, whom in found.items() if whom} == {
        "medianest-viewer": {"view", "edit", "admin"},
        "medianest-backup-operator": {"edit", "admin"},
        "medianest-restorer": {"admin"},
    }


def test_deletion_protection_can_be_left_out() -> None:
    kinds_with = {manifest["kind"] for manifest in chart_manifests()}
    kinds_without = {manifest["kind"] for manifest in chart_manifests({"deletionProtection": False})}
    policy = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert policy <= kinds_with
    assert not policy & kinds_without


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": "two"}, "replicas"),
        ({"image": {"repository": ""}}, "repository"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digest": "sha256:0"}}, "digest"),
        ({"postgres": {"image": ""}}, "postgres"),
        ({"imagePullSecrets": ["images"]}, "imagePullSecrets"),
        ({"namespaces": "media"}, "namespaces"),
        ({"namespaces": ["Media"]}, "namespaces"),
        ({"namespaces": ["media", "media"]}, "namespaces"),
        ({"probeInterval": 0}, "probeInterval"),
        ({"logLevel": "chatty"}, "logLevel"),
        ({"deletionProtection": "yes"}, "deletionProtection"),
        ({"roles": ["viewer"]}, "roles"),
        ({"replicaCount": 2}, "replicaCount"),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        chart_manifests(values)


def test_an_image_is_pinned_by_its_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    (deployment,) = of_kind(
        chart_manifests({"image": {"repository": "images.example/op", "digest": digest}}), "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"images.example/op:0.1.0@{digest}"


@pytest.mark.parametrize("digest", ["latest", "sha256:abc", f"sha256:{'g' * 64}"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(HelmError, match="digest"):
        chart_manifests({"image": {"repository": "op", "tag": "1", "digest": digest}})


def test_the_prometheus_operator_gets_its_objects_where_it_is_there() -> None:
    """Without a cluster there are no kinds but Kubernetes' own."""
    group = "monitoring.coreos.com/v1"
    assert not [item for item in chart_manifests() if item["apiVersion"] == group]
    values = {"prometheusOperator": True, "labels": {"release": "prometheus"}, "runbooks": "https://wiki.example/books"}
    made: list[dict[str, Any]] = [
        item for item in chart_manifests({"monitoring": values}) if item["apiVersion"] == group
    ]
    assert [item["kind"] for item in made] == ["PodMonitor", "PrometheusRule"]
    assert all(item["metadata"]["labels"]["release"] == "prometheus" for item in made)
    rules = made[1]["spec"]["groups"][0]["rules"]
    assert len(rules) >= 30
    assert all(rule["annotations"]["runbook_url"].startswith("https://wiki.example/books/") for rule in rules)
    assert all("{{ $labels." in rule["annotations"]["summary"] for rule in rules if "Operator" not in rule["alert"])


def test_dashboards_are_found_by_grafanas_sidecar() -> None:
    made = of_kind(chart_manifests({"monitoring": {"dashboards": True}}), "ConfigMap")
    assert {item["metadata"]["name"] for item in made} == {"medianest-dashboard-database", "medianest-dashboard-fleet"}
    for item in made:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        (board,) = item["data"].values()
        assert json.loads(board)["panels"]
