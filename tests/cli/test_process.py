"""The command as a process of its own, in a terminal, and Ctrl-C."""

import os
import pty
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from analog_grasp.cli.main import COMMANDS

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


HEAVY = {
    *("aihwkit", "datasets", "matplotlib", "numba", "optuna", "pandas", "peft", "scipy", "torch"),
    "transformers",
}
LIGHT = [
    ("--help", 0),
    ("--version", 0),
    *((f"{command} --help", 0) for command in COMMANDS),
    ("devices", 0),
    ("devices pcm-hermes-2", 0),
    ("devices nope", 2),
    ("adapters", 0),
    *(
        (f"compare {wrong}", 2)
        for wrong in (
            "--devices nope",
            "--devices no/such.toml",
            "--times soon",
            "--adapters nope",
            "--adapters no/such",
            "--task nope",
            "--data-dir no/such",
            "--model no/such/folder",
            "--groups 0",
            "--groups 4 --adapters lora",
            "--adc-bits 1",
            "--placement programmed --adapters head",
            "--noise-target pcm-hermes-2",
            "--config no/such.toml",
        )
    ),
    ("train --adapter nope", 2),
    ("train --adapter lora --noise-weight 2", 2),
    ("train --adapter grasp --injection nope@1d", 2),
    ("train --adapter grasp --converters ideal", 2),
    ("train --adapter grasp --task nope", 2),
    ("deploy no/such", 2),
    ("deploy adapter --device nope", 2),
    ("deploy adapter --time soon", 2),
    ("deploy adapter --export no/such/chip.safetensors", 2),
    ("drift no/such", 2),
    ("drift adapter --devices nope", 2),
    ("tune --adapter nope", 2),
    ("tune --devices nope", 2),
    ("tune --search epochs", 2),
    ("tune --ranges noise_weight", 2),
    ("inspect no/such", 2),
    ("report no/such", 2),
]


def test_help_lists_and_wrong_requests_import_no_heavy_package(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    lines = [
        "import sys",
        "from analog_grasp.cli import main",
        f"for words, expected in {LIGHT}:",
        "    status = main(words.split())",
        f"    found = sorted({HEAVY} & {{*sys.modules}})",
        "    assert (status, found) == (expected, []), (words, status, found)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == sum(status == 2 for _, status in LIGHT)
    assert all(line.startswith("error: ") for line in errors)
