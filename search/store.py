"""The store: one SQLite file that remembers every measurement, losers and failures too, and every finished result.

Content-addressed and safe for several writers (WAL). A corrupt file is moved aside and rebuilt; a store that cannot be
opened or written (locked, read-only, no space) turns into a memory-only one. Both are said through `notes`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eqsat.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
  kernel TEXT NOT NULL, context TEXT NOT NULL, schedule TEXT NOT NULL,
  status TEXT NOT NULL, median_ns REAL, detail TEXT NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (kernel, context, schedule)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
  key TEXT PRIMARY KEY, summary TEXT NOT NULL, files BLOB NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """What became of one schedule of one kernel: status, median time (ns, None unless timed) and the full record."""

    schedule: str
    status: str
    median_ns: float | None
    detail: dict[str, object]


def default_path() -> Path:
    """Return the user's store: `$XDG_CACHE_HOME/eqsat/store.sqlite`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "eqsat" / "store.sqlite"


@dataclass(slots=True)
class Store:
    """Open (or create) the store at `path`; ":memory:" keeps nothing.

    Attributes
    ----------
    notes : list of str
        What went wrong with the file and what was done about it, for the user to read.
    """

    path: Path | str
    notes: list[str] = field(default_factory=list)
    _db: sqlite3.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self._db = self._open(self.path)
        except sqlite3.DatabaseError as e:
            if isinstance(e, sqlite3.OperationalError):
                self._fall_back(e)
            else:
                self._rebuild(e)
        except OSError as e:
            self._fall_back(e)

    def _open(self, path: Path | str) -> sqlite3.Connection:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            if str(path) != ":memory:":
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _rebuild(self, cause: sqlite3.DatabaseError) -> None:
        aside = Path(f"{self.path}.corrupt-{int(time.time())}")
        Path(self.path).rename(aside)
        for extra in ("-wal", "-shm"):
            Path(f"{self.path}{extra}").unlink(missing_ok=True)
        self.notes.append(f"the store {self.path} was corrupt ({cause}); it was moved to {aside.name} and started anew")
        self._db = self._open(self.path)

    def _fall_back(self, cause: Exception) -> None:
        self.notes.append(f"the store {self.path} cannot be used ({cause}); this run keeps its results in memory only")
        self._db = self._open(":memory:")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run one write; a full disk or a lock is noted once and the run goes on without remembering."""
        try:
            yield self._db
        except sqlite3.OperationalError as e:
            note = f"the store {self.path} could not be written ({e}); results of this run may not be remembered"
            if note not in self.notes:
                self.notes.append(note)

    def put_trial(self, kernel: str, context: str, trial: StoredTrial) -> None:
        """Remember a trial; a later one of the same schedule replaces it."""
        row = (kernel, context, trial.schedule, trial.status, trial.median_ns, json.dumps(trial.detail), time.time())
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO trials VALUES (?,?,?,?,?,?,?)", row)

    def trials(self, kernel: str, context: str) -> dict[str, StoredTrial]:
        """Return the remembered trials of a kernel by schedule."""
        rows = self._db.execute(
            "SELECT schedule, status, median_ns, detail FROM trials WHERE kernel=? AND context=?", (kernel, context)
        )
        return {r[0]: StoredTrial(r[0], r[1], r[2], json.loads(r[3])) for r in rows}

    def measured(self, kernel: str) -> dict[str, float]:
        """Return the times (ns) of a kernel's schedules that were right, wherever and whenever; the last of each."""
        rows = self._db.execute(
            "SELECT schedule, median_ns FROM trials WHERE kernel=? AND status='ok' AND median_ns IS NOT NULL ORDER BY created",
            (kernel,),
        )
        return {schedule: float(ns) for schedule, ns in rows}

    def put_result(self, key: str, summary: dict[str, object], files: bytes) -> None:
        """Remember a finished search under `key`."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO results VALUES (?,?,?,?)", (key, json.dumps(summary), files, time.time()))

    def result(self, key: str) -> tuple[dict[str, object], bytes] | None:
        """Return (summary, files) of a finished search, if it is known."""
        row = self._db.execute("SELECT summary, files FROM results WHERE key=?", (key,)).fetchone()
        return None if row is None else (json.loads(row[0]), row[1])

    def put_fact(self, key: str, value: object) -> None:
        """Remember a small fact (measured rates of a device)."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?,?,?)", (key, json.dumps(value), time.time()))

    def fact(self, key: str) -> object | None:
        """Return a remembered fact."""
        row = self._db.execute("SELECT value FROM facts WHERE key=?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return {t: int(self._db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0]) for t in ("trials", "results", "facts")}

    def clear(self) -> None:
        """Forget everything."""
        try:
            for t in ("trials", "results", "facts"):
                self._db.execute(f"DELETE FROM {t}")
        except sqlite3.OperationalError as e:
            raise StoreError(f"expected to empty the store {self.path}; got {e}. Close other programs that use it.") from e

    def close(self) -> None:
        """Close the file."""
        self._db.close()
