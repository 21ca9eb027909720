"""Retention over whatever may happen to a repository: clocks that jump, damage, newer formats, copies that come and go.

The rules are told again here, from the files alone: what may go is only what can be read, and is past its time by the
clock of the day; the newest verified one, and the newest good one of each series, never go, and no other byte changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from backup_documents import resealed, sample_manifest
from integration.backup_samples import ORIGIN
from medianest_operator.backups.repository import layout, retention
from medianest_operator.backups.repository.catalog import Catalog, remove, write_verification
from medianest_operator.backups.repository.client import open_folder
from medianest_operator.backups.repository.layout import Format, Place, Tier
from medianest_operator.backups.repository.manifest import Verification
from medianest_operator.backups.repository.store import Content, cleanup, store

KEEP = {Tier.DAILY: timedelta(days=7), Tier.WEEKLY: timedelta(days=30), Tier.MONTHLY: timedelta(days=90)}
START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class Known:
    """A backup, as whoever made it knows it."""

    place: Place
    taken: datetime
    verified: bool | None = None
    manifest: bytes | None = None
    """As it was, where it can't be read at the moment."""
    away: bool = False


class Repository(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self._temporary = TemporaryDirectory()
        self.root = Path(self._temporary.name)
        (self.root / "there").mkdir()
        (self.root / "elsewhere").mkdir()
        self.repository = open_folder(self.root / "there", "there")
        self.clock = START
        self.known: dict[str, Known] = {}

    def teardown(self) -> None:
        if hasattr(self, "_temporary"):
            self._temporary.cleanup()

    # What happens.

    @rule(tier=st.sampled_from(list(KEEP)), number=st.integers(1, 6))
    def take(self, tier: Tier, number: int) -> None:
        for _ in range(number):
            self._take(tier)
            self.clock += timedelta(hours=1)

    def _take(self, tier: Tier) -> None:
        place = Place(ORIGIN, tier, layout.new_id(tier, self.clock, list(self.known)))
        contents = [Content(Format.CUSTOM, [b"rows of ", place.id.encode()])]
        taken = self.clock
        store([self.repository], place, contents, lambda files: sample_manifest(place, taken, files))
        self.known[place.id] = Known(place, taken)

    @rule(hours=st.integers(1, 24 * 40))
    def wait(self, hours: int) -> None:
        self.clock += timedelta(hours=hours)

    @rule(days=st.integers(-400, 400))
    def jump(self, days: int) -> None:
        self.clock += timedelta(days=days)

    @precondition(lambda self: self._there())
    @rule(data=st.data(), good=st.booleans())
    def verify(self, data: st.DataObject, good: bool) -> None:
        item = self._draw(data)
        if item.manifest is None:
            write_verification(self.repository, item.place, Verification.of(good, self.clock, 1))
            item.verified = good

    @precondition(lambda self: self._there())
    @rule(data=st.data(), size=st.integers(0, 200))
    def cut_the_manifest(self, data: st.DataObject, size: int) -> None:
        """Half synced, or damaged."""
        item = self._draw(data)
        if item.manifest is None:
            path = self._file(item, layout.MANIFEST)
            item.manifest = path.read_bytes()
            path.write_bytes(item.manifest[:size])

    @precondition(lambda self: self._there())
    @rule(data=st.data())
    def write_in_a_newer_format(self, data: st.DataObject) -> None:
        """By an operator that was rolled back."""
        item = self._draw(data)
        if item.manifest is None:
            path = self._file(item, layout.MANIFEST)
            item.manifest = path.read_bytes()
            path.write_text(resealed(json.loads(item.manifest) | {"format_version": 99, "formatVersion": 99}))

    @precondition(lambda self: any(item.manifest is not None and not item.away for item in self.known.values()))
    @rule(data=st.data())
    def repair(self, data: st.DataObject) -> None:
        broken = [item for item in self.known.values() if item.manifest is not None and not item.away]
        item = data.draw(st.sampled_from(broken))
        assert item.manifest is not None
        self._file(item, layout.MANIFEST).write_bytes(item.manifest)
        item.manifest = None

    @precondition(lambda self: self._there())
    @rule(data=st.data())
    def move_away(self, data: st.DataObject) -> None:
        item = self._draw(data)
        shutil.move(self._folder(item), self.root / "elsewhere" / item.place.id)
        item.away = True

    @precondition(lambda self: any(item.away for item in self.known.values()))
    @rule(data=st.data(), runs_between=st.booleans())
    def come_back(self, data: st.DataObject, runs_between: bool) -> None:
        """Its manifest last, as whatever copies it may do."""
        item = data.draw(st.sampled_from([item for item in self.known.values() if item.away]))
        source, target = self.root / "elsewhere" / item.place.id, self._folder(item)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir(), key=lambda path: path.name == layout.MANIFEST):
            if file.name == layout.MANIFEST and runs_between:
                self.look_after()
            shutil.move(file, target / file.name)
        source.rmdir()
        item.away = False

    @rule()
    def look_after(self) -> None:
        """What each backup's Job does at its end; and what may be gone then."""
        before = self._bytes()
        readable = [item for item in self._there() if item.manifest is None]
        for _ in range(2):
            cleanup(self.repository, ORIGIN)
        for removal in retention.plan(Catalog.read(self.repository, ORIGIN).backups, self.clock, KEEP):
            remove(self.repository, removal.backup)
        after = self._bytes()
        gone = {path.split("/")[-2] for path in before.keys() - after.keys()}
        assert {path: before[path] for path in after} == after
        assert not any(path.split("/")[-2] in gone for path in after), "a part of one is gone"
        for name in gone:
            item = self.known.pop(name)
            assert item in readable, f"{name} can't be read"
            assert self.clock - item.taken > KEEP[item.place.tier], f"{name} is not past its time"
        for tier in KEEP:
            assert sum(f"-{tier}-" in name for name in gone) <= 2
        verified = max((item.place.id for item in readable if item.verified), default=None)
        assert verified not in gone, "the last verified one is gone"
        for tier in KEEP:
            of_tier = [item for item in readable if item.place.tier is tier]
            good = [item.place.id for item in of_tier if item.verified is not False]
            newest = max(good or [item.place.id for item in of_tier], default=None)
            assert newest not in gone, f"the last good {tier} one is gone"

    # What there is.

    def _there(self) -> list[Known]:
        return [item for item in self.known.values() if not item.away]

    def _draw(self, data: st.DataObject) -> Known:
        item: Known = data.draw(st.sampled_from(self._there()))
        return item

    def _folder(self, item: Known) -> Path:
        return self.root / "there" / item.place.folder

    def _file(self, item: Known, name: str) -> Path:
        return self._folder(item) / name

    def _bytes(self) -> dict[str, bytes]:
        def files() -> Iterator[Path]:
            return (path for path in (self.root / "there").rglob("*") if path.is_file())

        return {str(path.relative_to(self.root)): path.read_bytes() for path in files()}


TestRetention = Repository.TestCase
TestRetention.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
