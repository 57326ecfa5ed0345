"""Start-up time of the command line, in units of an import of pydantic, typer and rich.

Help texts, lists and wrong requests need neither torch nor transformers; each is run as a new
process, in turn with the import, so that changes of the machine's speed affect both alike.

    python benchmarks/startup.py

About one minute on an idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peers import interleaved, ratio_table

UNIT = "import pydantic, typer, rich"
COMMANDS = (
    "--help",
    "compare --help",
    "devices",
    "devices pcm-hermes-2",
    "devices nope",
    "adapters",
    "compare --devices nope",
    "compare --times soon",
    "compare --adapters nope",
    "compare --task nope",
    "compare --groups 0",
    "compare --config no/such.toml",
    "train --adapter nope",
    "train --adapter grasp --injection nope@1d",
    "deploy no/such",
    "deploy adapter --time soon",
    "drift no/such",
    "drift adapter --devices nope",
    "tune --adapter nope",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="processes per command")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), help="quoted arguments")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter").mkdir()
        (Path(folder) / "adapter" / "adapter_config.json").write_text("{}")
        functions: dict[str, Callable[[], object]] = {UNIT: partial(run, folder, UNIT)}
        for words in asked.commands:
            code = f"from analog_grasp.cli import main; main({words.split()!r})"
            functions[f"analog-grasp {words}"] = partial(run, folder, code)
        seconds = interleaved(functions, asked.repeats)
    print(ratio_table("Start-up", seconds, UNIT))


def run(folder: str, code: str) -> None:
    """Run a line of Python in a new process and a folder, without its output."""
    # The package as it is found here, also where it is not installed.
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=True,
    )


if __name__ == "__main__":
    main()
