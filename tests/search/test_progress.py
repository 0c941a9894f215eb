"""Progress is shown on a terminal, on stderr, and nowhere else."""

import sys
from types import SimpleNamespace

import pytest

from eqsat.search.progress import Silent, Terminal, progress_for


def test_nothing_is_shown_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    assert isinstance(progress_for(None), Silent)


def test_a_line_is_shown_where_stderr_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress_for(None), Terminal)


def test_the_callers_own_reporter_is_used() -> None:
    mine = Silent()
    assert progress_for(mine) is mine
    assert isinstance(progress_for(False), Silent)


def test_the_terminal_line_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(True) as shown:
        shown.stage("measure point")
        shown.note("3/14")
    assert capsys.readouterr().out == ""
