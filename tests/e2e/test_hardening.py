"""`spec.hardening` as an admin turns it on and off, and as the application meets it."""

from __future__ import annotations

from e2e.kube import KIND, Kube, Manifest, condition_of

ALL: Manifest = {
    "recommendedIndexes": True,
    "checkConstraints": {"enabled": True},
    "auditColumns": True,
    "rowLevelSecurity": True,
}
OFF: Manifest = {
    "recommendedIndexes": False,
    "checkConstraints": {"enabled": False},
    "auditColumns": False,
    "rowLevelSecurity": False,
}
OWN_INDEXES = "SELECT count(*) FROM pg_indexes WHERE starts_with(indexname, 'hardening_')"
POLICIES = "SELECT count(*) FROM pg_policies"


def hardened(kube: Kube, name: str) -> Manifest:
    kube.wait_condition(name, "HardeningApplied", "True", "HardeningApplied")
    status: Manifest = kube.wait_ready(name)["status"]
    return status


def test_every_option_on_off_and_on_again(kube: Kube) -> None:
    kube.database("db", hardening=ALL)
    status = hardened(kube, "db")
    states = {name: status["hardening"][name] for name in ALL}
    assert set(states.values()) == {"Applied"}
    kube.wait(KIND, "db", lambda db: (db or {})["status"]["indexes"]["total"] == 33 + 9, "with nine indexes more")
    assert kube.sql("db-0", OWN_INDEXES) == "9"

    app = kube.secret("db-app")["uri"]
    people = (
        "INSERT INTO users (id, email, role) VALUES ('ann', 'a@example.org', 'user'), ('bob', 'b@example.org', 'USER')"
    )
    assert kube.client_sql("db-0", app, f"{people} RETURNING id").split() == ["ann", "bob"]
    refused = kube.client_sql("db-0", app, "UPDATE users SET role = 'root'", check=False)
    assert "hardening_users_role_check" in refused
    kube.client_sql("db-0", app, "UPDATE users SET last_login_at = now() WHERE id = 'ann'")
    touched = (
        "SELECT id FROM users WHERE hardening_updated_at IS DISTINCT FROM created_at AND last_login_at IS NOT NULL"
    )
    assert kube.client_sql("db-0", app, touched) == "ann"
    assert kube.client_sql("db-0", app, "SELECT count(*) FROM users") == "2"
    as_bob = "SET app.current_user_id = 'bob'; SELECT id FROM users"
    assert kube.client_sql("db-0", app, as_bob) == "bob"
    readonly = kube.secret("db-readonly")["uri"]
    assert kube.client_sql("db-0", readonly, "SELECT count(*) FROM users") == "2"

    kube.patch("db", {"hardening": OFF})
    kube.wait(KIND, "db", lambda db: "hardening" not in (db or {})["status"], "without hardening")
    assert kube.sql("db-0", OWN_INDEXES) == "0"
    assert kube.sql("db-0", POLICIES) == "0"
    assert not condition_of(kube.get(KIND, "db"), "HardeningApplied")
    removed = [message for reason, message in kube.events("db") if reason == "HardeningRemoved"]
    assert len(removed) == 4

    kube.patch("db", {"hardening": ALL})
    hardened(kube, "db")
    assert kube.sql("db-0", OWN_INDEXES) == "9"


def test_rows_in_the_way_are_told_and_ready_stays(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    app = kube.secret("db-app")["uri"]
    kube.client_sql("db-0", app, "INSERT INTO users (id, email, role) VALUES ('eve', 'e@example.org', 'root')")
    kube.patch("db", {"hardening": {"checkConstraints": {"enabled": True}, "recommendedIndexes": True}})
    failed = kube.wait_condition("db", "HardeningApplied", "False", "HardeningFailed")
    assert "1 row breaks hardening_users_role_check: users.role holds 'root' (1)." in failed["message"]
    status = kube.wait_ready("db")["status"]
    assert status["hardening"]["checkConstraints"] == "Failed"
    assert status["hardening"]["recommendedIndexes"] == "Applied"
    assert kube.sql("db-0", "SELECT count(*) FROM pg_constraint WHERE starts_with(conname, 'hardening_')") == "0"
    assert "HardeningFailed" in kube.reasons("db")

    # Other options are tried at once.
    roles = ["user", "USER", "admin", "ADMIN", "root"]
    kube.patch("db", {"hardening": {"checkConstraints": {"userRoles": roles}}})
    hardened(kube, "db")
    # The data mended, and the Job deleted: the same options are tried again.
    kube.patch("db", {"hardening": {"checkConstraints": {"userRoles": ["user", "USER"]}}})
    kube.wait_condition("db", "HardeningApplied", "False", "HardeningFailed")
    kube.client_sql("db-0", app, "UPDATE users SET role = 'user'")
    job = kube.get(KIND, "db")["status"]["hardening"]["job"]  # type: ignore[index]
    kube.kubectl("delete", "job", job)
    hardened(kube, "db")


def test_what_somebody_drops_comes_back_with_a_new_job(kube: Kube) -> None:
    kube.database("db", hardening={"recommendedIndexes": True})
    hardened(kube, "db")
    kube.sql("db-0", "DROP INDEX hardening_users_role_idx")
    kube.wait_condition("db", "HardeningApplied", "False", "HardeningApplying")
    # Sooner than after ten minutes: with the Job gone, nothing says that it was tried just now.
    kube.kubectl("delete", "job", "-l", "app.kubernetes.io/component=hardening")
    hardened(kube, "db")
    assert kube.sql("db-0", OWN_INDEXES) == "9"
