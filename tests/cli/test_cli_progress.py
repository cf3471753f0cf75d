import io
import sys
import time

from samjax.cli import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, seconds):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "DELAY", 0.05)
    with progress.waiting("encoding"):
        time.sleep(seconds)
    return stream.getvalue()


def test_long_work_shows_and_leaves_nothing(monkeypatch):
    text = shown(monkeypatch, Terminal(), 0.3)
    assert text.startswith("\rencoding ... 0 s")
    assert text.split("\r")[-2].isspace() and text.endswith("\r")


def test_short_work_shows_nothing(monkeypatch):
    assert shown(monkeypatch, Terminal(), 0) == ""


def test_nothing_outside_a_terminal(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), 0.2) == ""


def test_errors_pass_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    try:
        with progress.waiting("encoding"):
            raise ValueError("as it was")
    except ValueError as error:
        assert str(error) == "as it was"
    else:
        raise AssertionError("the error was lost")
