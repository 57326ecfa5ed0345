"""Griffe extension that renders the docstrings: doctest examples as code, names as links."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

# Objects below these paths are omitted from the reference.
_HIDDEN = ("analog_grasp.cli",)
# Headings of docs/method.md by which docstrings cite it.
_SECTIONS = (
    *("GRASP", "StochGRASP", "Analog deployment", "Device cards", "Recalibration"),
    *("Energy, latency and programming cost", "Tasks and metrics", "Write tolerances"),
)


class Docstrings(griffe.Extension):
    """Prepare the docstrings of a package for mkdocstrings."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings once the package has been loaded."""
        objects = list(_objects(pkg))
        paths = {each.name: each.path for each in objects if each.is_class or each.is_function}

        def link(match: re.Match[str]) -> str:
            name = match[1]
            return f"[`{name}`][{paths[name]}]" if name in paths else match[0]

        def cite(match: re.Match[str]) -> str:
            anchor = re.sub(r"\W+", "-", match[1]).lower()
            return f'[Method, "{match[1]}"][{anchor}]'

        for each in objects:
            if isinstance(each, griffe.Module):
                # Re-exported names are documented once, in the module that defines them.
                each.exports = None
            if each.docstring:
                text = re.sub(r"(?<![`\[])`(\w+)`(?!`)", link, each.docstring.value)
                headings = "|".join(_SECTIONS)
                text = re.sub(
                    rf'docs/method\.md,\s+(?:section\s+)?"?({headings})"?(?!\w)', cite, text
                )
                each.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", text)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """Yield the public objects below `parent`, including itself."""
    yield parent
    for name, member in parent.members.items():
        hidden = name.startswith("_") and name != "__call__"
        if isinstance(member, griffe.Object) and not hidden and member.path not in _HIDDEN:
            yield from _objects(member)
