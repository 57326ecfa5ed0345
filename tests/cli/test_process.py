"""The command as a process of its own, in a terminal, and Ctrl-C."""

import os
import pty
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "import sys; from analog_grasp.cli import main; sys.exit(main())"


def cells(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM measurements").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def read(terminal: int) -> bytes:
    """What was written to a terminal; nothing once its other end is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_in_a_terminal(tiny, tmp_path):
    out = tmp_path / "run"
    given = [
        "compare", *tiny, "--groups", "4", "--epochs", "1", "--adapters", "grasp", "--devices",
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


def run_python(*lines: str) -> str:
    """What a fresh process prints that imports this package and nothing else before it."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_version_wait_for_no_heavy_package():
    """Of the whole and of every command: torch and peft take seconds to load."""
    heavy = "{'aihwkit', 'datasets', 'optuna', 'peft', 'scipy', 'torch', 'transformers'}"
    printed = run_python(
        "import sys",
        "from analog_grasp.cli import main",
        "from analog_grasp.cli.main import COMMANDS",
        "asked = [['--help'], ['--version'], *([name, '--help'] for name in COMMANDS)]",
        "assert {main(words) for words in asked} == {0}",
        f"print(sorted({heavy} & {{*sys.modules}}))",
    )
    assert printed.splitlines()[-1] == "[]"


def test_the_list_of_devices_needs_neither_peft_nor_transformers():
    printed = run_python(
        "import sys",
        "from analog_grasp.cli import main",
        "assert main(['devices']) == 0",
        "print(sorted({'datasets', 'matplotlib', 'peft', 'transformers'} & {*sys.modules}))",
    )
    assert printed.splitlines()[-1] == "[]"
