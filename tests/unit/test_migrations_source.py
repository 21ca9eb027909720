"""Sources: what is read as a migration, what is refused and how, and what the digest depends on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.source import (
    Migration,
    SourceError,
    content_digest,
    migrations_from_directory,
    migrations_from_mapping,
)

LOCK = 'provider = "postgresql"\n'
NAMES = st.from_regex(r"[0-9]{1,14}(_[A-Za-z0-9_-]{0,20})?", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
SOURCES = st.dictionaries(NAMES, TEXTS, min_size=1, max_size=5)


@given(SOURCES)
def test_nested_and_prefixed_forms_are_the_same(source: dict[str, str]) -> None:
    nested = migrations_from_mapping({f"{name}/migration.sql": text for name, text in source.items()})
    prefixed = migrations_from_mapping(
        {f"{name}.sql": text for name, text in source.items()} | {"migration_lock.toml": LOCK}
    )
    assert nested == prefixed
    assert [migration.name for migration in nested] == sorted(source)
    assert content_digest(nested) == content_digest(prefixed) == content_digest(reversed(nested))


@given(SOURCES, st.sampled_from([None, "20250704075237_init"]))
def test_digest_changes_with_whatever_a_run_depends_on(source: dict[str, str], target: str | None) -> None:
    migrations = migrations_from_mapping({f"{name}.sql": text for name, text in source.items()})
    options = {"target": target}
    digest = content_digest(migrations, options)
    assert len(digest) == 64
    first, *rest = migrations
    edited = Migration.from_bytes(first.name, (first.sql + "\n--").encode())
    added = Migration.from_bytes("99999999999999_z", b"SELECT 1")
    assert digest != content_digest([edited, *rest], options)
    assert digest != content_digest([*migrations, added], options)
    assert digest != content_digest(rest, options)
    assert digest != content_digest(migrations, {"target": "20990101000000_other"})
    assert digest != content_digest([first.recorded_as("0" * 64), *rest], options)
    assert digest != content_digest([first.with_down(b"SELECT 1"), *rest], options)


@given(TEXTS.filter(lambda text: "\r" not in text))
def test_checksum_is_prismas_and_line_ends_do_not_matter(text: str) -> None:
    lf, crlf = text.encode(), text.replace("\n", "\r\n").encode()
    unix, windows = Migration.from_bytes("1_a", lf), Migration.from_bytes("1_a", crlf)
    assert unix.checksum == hashlib.sha256(lf).hexdigest()
    assert windows.checksum == hashlib.sha256(crlf).hexdigest()
    assert unix.recognises(windows.checksum)
    assert windows.recognises(unix.checksum)
    assert not unix.recognises(hashlib.sha256(lf + b" ").hexdigest())


def test_byte_order_mark_counts_for_the_checksum_and_is_not_sent() -> None:
    migration = Migration.from_bytes("1_a", b"\xef\xbb\xbfSELECT 1")
    assert migration.sql == "SELECT 1"
    assert migration.checksum == hashlib.sha256(b"\xef\xbb\xbfSELECT 1").hexdigest()


@pytest.mark.parametrize("name", ["20250704075237_init", "0_init", "20210101010101_", "20250101", "1_A-b_9"])
def test_names_that_prisma_writes_are_accepted(name: str) -> None:
    assert [m.name for m in migrations_from_mapping({f"{name}.sql": ""})] == [name]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "no migration in ConfigMap media/sql: expected entries such as 20250704075237_init.sql"),
        ({"migration_lock.toml": LOCK}, "no migration in ConfigMap media/sql"),
        ({"init.sql": ""}, "init.sql in ConfigMap media/sql: 'init' is not a migration's name; use <YYYYMMDDhhmmss>_"),
        ({"1_a b.sql": ""}, "'1_a b' is not a migration's name"),
        (
            {"1_b.sql": "", "1_a.down.sql": ""},
            "1_a.down.sql in ConfigMap media/sql reverts migration 1_a, which is not",
        ),
        ({"../1_a/migration.sql": ""}, "a migration's file is called migration.sql"),
        ({"1_b.sql": "", "1_a/down.sql": ""}, "1_a/down.sql in ConfigMap media/sql reverts migration 1_a, which is"),
        (
            {"1_a.sql": "", "1_a/down.sql": "", "1_a.down.sql": ""},
            "ConfigMap media/sql has two down scripts for 1_a: 1_a.down.sql and 1_a/down.sql",
        ),
        ({"1_a.txt": ""}, "1_a.txt in ConfigMap media/sql is not a migration: expected <name>.sql"),
        ({f"1_{'a' * 254}.sql": ""}, "the name has 256 characters, the limit is 255"),
        (
            {"1_a.sql": "", "1_a/migration.sql": ""},
            "migration 1_a appears twice in ConfigMap media/sql: as 1_a.sql and",
        ),
        ({"1_a.sql": b"SELECT 1;\nSELECT '\xff'"}, "migration 1_a is not UTF-8: byte 0xff in line 2"),
        ({"1_a.sql": "SELECT 1;\n\n\0"}, "migration 1_a holds a NUL byte in line 3"),
        ({"1_a.sql": "", "migration_lock.toml": 'provider = "sqlite"'}, "says provider 'sqlite'"),
        ({"1_a.sql": "", "migration_lock.toml": ""}, "says provider None"),
        ({"1_a.sql": "", "migration_lock.toml": "provider"}, "migration_lock.toml in ConfigMap media/sql is not valid"),
        ({"1_a.sql": "", "migration_lock.toml": b"\xff"}, "migration_lock.toml in ConfigMap media/sql is not valid"),
    ],
)
def test_what_is_no_source_is_refused_by_name(entries: dict[str, str | bytes], words: str) -> None:
    with pytest.raises(SourceError) as caught:
        migrations_from_mapping(entries, "ConfigMap media/sql")
    assert words in str(caught.value)


def test_folder_in_prismas_layout(tmp_path: Path) -> None:
    (tmp_path / "20250704075237_init").mkdir()
    (tmp_path / "20250704075237_init" / "migration.sql").write_text("SELECT 1")
    (tmp_path / "20250704075237_init" / "notes.txt").write_text("read me")
    (tmp_path / "migration_lock.toml").write_text(LOCK)
    (tmp_path / "README.md").write_text("ours")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert [m.name for m in migrations_from_directory(tmp_path)] == ["20250704075237_init"]


def test_mounted_config_map(tmp_path: Path) -> None:
    """The kubelet mounts links into a hidden folder whose name changes with every version."""
    version = tmp_path / "..2026_01_01_00_00_00.1"
    version.mkdir()
    data = {"20250704075237_init.sql": "SELECT 1", "20250801000000_b.sql": "SELECT 2", "migration_lock.toml": LOCK}
    for key, text in data.items():
        (version / key).write_text(text)
        (tmp_path / key).symlink_to(f"..data/{key}")
    (tmp_path / "..data").symlink_to(version.name)
    assert migrations_from_directory(tmp_path) == migrations_from_mapping(data)
    assert content_digest(migrations_from_directory(tmp_path)) == content_digest(migrations_from_mapping(data))


def test_folder_without_its_script(tmp_path: Path) -> None:
    (tmp_path / "20250704075237_init").mkdir()
    with pytest.raises(SourceError, match=r"folder 20250704075237_init in .* has no migration\.sql"):
        migrations_from_directory(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"can't read .*nowhere: No such file or directory"):
        migrations_from_directory(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_script(tmp_path: Path) -> None:
    script = tmp_path / "1_a.sql"
    script.write_text("SELECT 1")
    script.chmod(0)
    with pytest.raises(SourceError, match=r"can't read .*1_a\.sql: Permission denied"):
        migrations_from_directory(tmp_path)


def test_bundled_migrations_are_a_readable_folder() -> None:
    names = [migration.name for migration in bundled_migrations()]
    assert names == sorted(names)
    assert len(names) == 3
    assert content_digest(bundled_migrations()) == content_digest(bundled_migrations()[::-1])
