"""Imports between the packages, which go in one direction."""

import ast
from pathlib import Path

import analog_grasp

# Each imports only from those before it.
PACKAGES = (
    *("utils", "kernels", "devices", "adapters", "crossbar", "tasks", "training", "costs"),
    *("study", "tuning", "report", "cli"),
)
# Both write a report once all is measured.
EXCEPTIONS = {("study", "report"), ("tuning", "report")}


def imported(path: Path) -> set[str]:
    """Return the packages of analog_grasp that a module imports."""
    nodes = [
        each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.ImportFrom)
    ]
    named = {
        node.module for node in nodes if node.module and node.module.startswith("analog_grasp.")
    }
    own = (alias.name for node in nodes if node.module == "analog_grasp" for alias in node.names)
    return {name.split(".")[1] for name in named} | {name for name in own if name in PACKAGES}


def test_a_package_imports_only_from_those_before_it():
    root = Path(analog_grasp.__file__).parent
    found = {
        (package.name, other)
        for package in root.iterdir()
        for path in package.glob("*.py")
        for other in imported(path) - {package.name}
    }
    assert {package for package, _ in found} == {*PACKAGES} - {"utils", "kernels"}
    backward = {(a, b) for a, b in found if PACKAGES.index(a) < PACKAGES.index(b)}
    assert backward == EXCEPTIONS
