"""How docstrings become the reference: examples are shown as code, names in backticks as links."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

# Not part of the reference.
_LEFT_OUT = ("analog_grasp.cli", "analog_grasp.cli.diagnosis", "analog_grasp.hook")


class Docstrings(griffe.Extension):
    """Reads the docstrings of a package as this project writes them."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once all of a package has been read."""
        objects = list(_objects(pkg))
        homes = {each.name: each.path for each in objects if each.is_class or each.is_function}

        def link(found: re.Match[str]) -> str:
            name = found[1]
            return f"[`{name}`][{homes[name]}]" if name in homes else found[0]

        for each in objects:
            if isinstance(each, griffe.Module):
                # What a package hands on is shown where it is made, and once.
                each.exports = None
            if each.docstring:
                text = re.sub(r"(?<![`\[])`(\w+)`(?!`)", link, each.docstring.value)
                text = re.sub(r"\bMETHOD (\d)", r"[METHOD \1][method-\1]", text)
                each.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", text)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """The public objects below one, itself among them; those of modules first, by path."""
    yield parent
    for name, member in parent.members.items():
        hidden = name.startswith("_") and name != "__call__"
        if isinstance(member, griffe.Object) and not hidden and member.path not in _LEFT_OUT:
            yield from _objects(member)
