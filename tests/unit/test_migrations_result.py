"""The result of a run: outcomes, exit codes, and JSON that fits a termination message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.results.migration import AppliedMigration, FailedMigration, MigrationResult, Outcome, Reason
from medianest_operator.results.text import shorten

words = st.text(st.characters(codec="utf-8"), max_size=3000)
names = st.text("0123456789_abc", min_size=1, max_size=255)


@given(
    reason=st.sampled_from(Reason),
    message=words,
    detail=words,
    hint=words,
    warnings=st.lists(words, max_size=6),
    migrations=st.lists(names, max_size=60),
)
def test_json_fits_and_keeps_what_matters(
    reason: Reason, message: str, detail: str, hint: str, warnings: list[str], migrations: list[str]
) -> None:
    result = MigrationResult.of(
        reason,
        message,
        version="20250905150611_add_password_hash_to_users",
        applied=tuple(AppliedMigration(name=name, milliseconds=3) for name in migrations),
        pending=tuple(migrations),
        warnings=tuple(warnings),
        failed=FailedMigration(migration="m" * 255, statement=3, line=22, message=message, detail=detail, hint=hint),
    )
    text = result.to_json()
    assert len(text.encode()) <= 4096
    read = MigrationResult.model_validate_json(text)
    assert (read.outcome, read.reason, read.version) == (result.outcome, reason, result.version)
    assert read.failed is not None
    assert (read.failed.migration, read.failed.statement, read.failed.line) == ("m" * 255, 3, 22)
    assert read.truncated or read == result
    assert not read.truncated or len(result.model_dump_json(exclude_none=True).encode()) > 4096


def test_exit_codes_follow_the_reason() -> None:
    codes = {reason: MigrationResult.of(reason, "").outcome.exit_code for reason in Reason}
    assert {reason for reason, code in codes.items() if code == 0} == {Reason.APPLIED, Reason.UP_TO_DATE}
    assert codes[Reason.MIGRATION_FAILED] == codes[Reason.PARTIALLY_APPLIED] == codes[Reason.STATEMENT_TIMEOUT] == 1
    assert codes[Reason.CONNECTION_LOST] == codes[Reason.LOCK_NOT_GRANTED] == codes[Reason.INTERRUPTED] == 2
    assert {Outcome.APPLIED.exit_code, Outcome.FAILED.exit_code, Outcome.TRANSIENT.exit_code} == {0, 1, 2}


@given(words, st.integers(min_value=3, max_value=500))
def test_shortened_text_is_a_beginning(text: str, longest: int) -> None:
    short = shorten(text, longest)
    assert len(short.encode()) <= max(longest, 3)
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))
