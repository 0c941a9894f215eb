"""The store keeps what it is told, survives corruption, and never fails a search."""

from pathlib import Path

from eqsat.search.store import Store, StoredTrial


def test_a_trial_is_found_again_by_another_connection(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    first = Store(path)
    first.put_trial("kernel", "context", StoredTrial("PointTile 1", "ok", 12.5, {"x": 1}))
    second = Store(path)
    assert second.trials("kernel", "context")["PointTile 1"].median_ns == 12.5
    assert second.trials("kernel", "another device") == {}
    first.close()
    second.close()


def test_two_writers_do_not_lose_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    stores = [Store(path), Store(path)]
    for i in range(20):
        stores[i % 2].put_trial("k", "c", StoredTrial(f"s{i}", "wrong", None, {}))
    assert len(stores[0].trials("k", "c")) == 20
    assert not stores[0].notes
    for s in stores:
        s.close()


def test_a_corrupt_file_is_moved_aside_and_said(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    store = Store(path)
    store.put_fact("rates", [1.0])
    assert store.fact("rates") == [1.0]
    assert "corrupt" in store.notes[0]
    assert list(tmp_path.glob("store.sqlite.corrupt-*"))
    store.close()


def test_a_folder_that_cannot_be_made_leaves_a_store_in_memory_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "store.sqlite")
    store.put_fact("a", 1)
    assert store.fact("a") == 1
    assert "memory only" in store.notes[0]
    store.close()


def test_a_locked_store_notes_the_lock_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    holder, other = Store(path), Store(path)
    holder._db.execute("BEGIN EXCLUSIVE")
    other._db.execute("PRAGMA busy_timeout=50")
    other.put_fact("a", 1)
    assert "could not be written" in other.notes[0]
    holder._db.execute("ROLLBACK")
    holder.close()
    other.close()


def test_results_come_back_as_they_were_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    store.put_result("key", {"median_ns": 1.0}, b"archive")
    assert store.result("key") == ({"median_ns": 1.0}, b"archive")
    assert store.result("other") is None
    assert store.counts()["results"] == 1
    store.clear()
    assert store.counts()["results"] == 0
    store.close()
