"""Notes, progress with and without a terminal, and Ctrl-C."""

import os
import pty
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from analog_grasp.cli.console import print_line, stages
from analog_grasp.devices import noise_model as noise


@pytest.mark.parametrize("quiet", [True, False])
def test_a_note_stands_in_the_log_and_is_shown_unless_quiet(
    ag, finished, tiny, tmp_path, monkeypatch, quiet
):
    monkeypatch.setattr(noise, "_warned", set())
    given = ["--devices", "rram-wan2022", "--times", "30d,1y", "--repeats", "2"]
    ended = ag(
        "drift", finished / "adapters/grasp", *tiny, *given, "--out", tmp_path / "run",
        *(["--quiet"] if quiet else []),
    )  # fmt: skip
    assert ended.status == 0
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    (note,) = [line[20:] for line in lines if line[20:].startswith("note: ")]
    assert "rram-wan2022" in note
    shown = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert shown == ([] if quiet else [note])
    if quiet:
        assert (ended.out, ended.err) == ("", "")


def test_a_note_on_the_request_is_kept_too(ag, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_warned", set())
    out = tmp_path / "run"
    # The target, which no other test has looked up, is so before the run has a folder to write to.
    ended = ag(
        "compare", *tiny, "--adapters", "stochgrasp", "--groups", "4", "--noise-target",
        "rram-wan2022@401d", "--devices", "ideal", "--times", "0s", "--repeats", "1",
        "--epochs", "1", "--quiet", "--out", out,
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    assert "note: Device card" in (out / "run.log").read_text()


def test_what_a_terminal_would_obey_is_shown_as_text(capsys):
    print_line("error", "the file \x1b[2J\x07 of\nmine µS")
    assert capsys.readouterr().err == "error: the file \\x1b[2J\\x07 of mine µS\n"


@pytest.mark.parametrize(("total", "lines"), [(200, 10), (10, 10), (7, 7), (1, 1)])
def test_without_a_terminal_a_stage_prints_a_line_per_tenth(capsys, total, lines):
    with stages() as progress:
        advance = progress("measuring", total)
        for _ in range(total):
            advance("a figure")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "measuring"
    assert len(printed) == 1 + lines
    assert printed[-1] == f"measuring: {total} of {total}, 0:00:00 left"


def test_quiet_stages_print_nothing(capsys):
    with stages(quiet=True) as progress:
        progress("measuring", 1)()
    assert capsys.readouterr().err == ""


RUN = "import sys; from analog_grasp.cli import main; sys.exit(main())"


def cells(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM measurements").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def read(terminal: int) -> bytes:
    """Return what was written to a terminal; nothing once its other end is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_in_a_terminal(tiny, tmp_path):
    out = tmp_path / "run"
    given = [
        "compare", *tiny, "--groups", "4", "--epochs", "2", "--adapters", "grasp", "--devices",
        "ideal", "--times", "0s", "--repeats", "5000", "--out", str(out),
    ]  # fmt: skip
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *given],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
        # A test run that was started in the background ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    shown, sent = b"", False
    try:
        while chunk := read(ours):
            shown += chunk
            if not sent and cells(out / "results.sqlite") >= 3:
                process.send_signal(signal.SIGINT)
                sent = True
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        os.close(ours)
    assert b"measuring 5000 of 5000 cells" in shown
    assert b"\x1b[" in shown
    kept = cells(out / "results.sqlite")
    assert kept >= 3
    last = shown.decode().splitlines()[-1]
    assert last.endswith(
        f"Interrupted: {kept} of 5000 cells are measured and kept in {out}; "
        "the same command resumes the run."
    )
