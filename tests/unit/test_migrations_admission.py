"""What of lint's findings ends a run before it begins."""

from __future__ import annotations

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.lint.lint import Finding, Severity
from medianest_operator.migrations.run.admission import refusal
from unit.linting import look


def test_what_is_refused_counts_before_what_loses_data() -> None:
    refused = refusal(look("DROP TABLE users; ALTER SYSTEM SET work_mem = '1GB'; LOAD 'x'"), RunOptions())
    assert refused is not None
    assert refused.reason == "StatementRefused"
    assert refused.message.startswith("Statement 2 (line 1) of 20260101000000_m: ALTER SYSTEM writes the configuration")
    assert refused.message.endswith("(1 more like it in the log.) Nothing was changed.")
    assert refused.failed is not None
    assert (refused.failed.statement, refused.failed.line) == (2, 1)


def test_finding_about_a_whole_file_names_no_statement() -> None:
    refused = refusal([Finding(Severity.REFUSED, "rule", "20260101000000_m", 0, 0, "is too much.")], RunOptions())
    assert refused is not None
    assert refused.message == "20260101000000_m: is too much. Nothing was changed."
    assert refused.failed is not None
    assert (refused.failed.statement, refused.failed.line) == (None, None)


def test_data_is_lost_only_where_that_is_allowed() -> None:
    found = look("DROP TABLE users")
    refused = refusal(found, RunOptions())
    assert refused is not None
    assert refused.reason == "DestructiveStatement"
    assert "Set spec.migrations.allowDestructive to true" in refused.message
    assert refusal(found, RunOptions(allow_destructive=True)) is None
