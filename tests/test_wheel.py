"""The built wheel: its files, and its use outside the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("analog_grasp-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return a folder that contains only the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, folder, wheel], check=True, capture_output=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Return a function that runs a command with the wheel instead of the source tree."""

    def run(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "120", "NO_COLOR": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_wheel_contains_code_and_data_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    cards = {f"analog_grasp/{p.relative_to(ROOT)}" for p in ROOT.glob("device_models/**/*.toml")}
    code = {str(p.relative_to(ROOT)) for p in ROOT.glob("analog_grasp/**/*.py")}
    data = {
        "analog_grasp/report/page.html.j2",
        "analog_grasp/report/analog_grasp.mplstyle",
        "analog_grasp/py.typed",
    }
    assert len(cards) >= 10
    assert names >= cards | code | data
    assert {name.split("/")[0].split("-")[0] for name in names} == {"analog_grasp"}
    assert not any("__pycache__" in name for name in names)


def test_installed_package_lists_its_devices(run, installed):
    script = (
        "import sys, analog_grasp, analog_grasp.report.page, analog_grasp.report.tuning; "
        "from analog_grasp.cli import main; "
        "print(analog_grasp.__file__); sys.argv = ['analog-grasp', 'devices']; main()"
    )
    file, listed = run(sys.executable, "-c", script).split("\n", 1)
    assert Path(file).is_relative_to(installed)
    for card in ROOT.glob("device_models/*.toml"):
        assert card.stem in listed


def test_installed_command_prints_its_help(run, installed):
    printed = run(installed / "bin" / "analog-grasp", "compare", "--help")
    for option in ("--model", "--task", "--adapters", "--devices", "--times", "--repeats", "--out"):
        assert option in printed
