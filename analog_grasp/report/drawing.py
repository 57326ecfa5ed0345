"""What every figure shares: the style, how it is written, and an axis with a break."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rc_file, rcdefaults
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analog_grasp.utils.io import write_atomically

# What would differ from one time to the next is left out.
_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
STYLE = Path(__file__).with_name("analog_grasp.mplstyle")


def write_figure(draw: Callable[[], Figure], path_stem: Path | str) -> list[Path]:
    """Draw a figure in the project's style and write it as PNG, SVG and PDF, always the same bytes.

    Args:
        draw: Makes the figure.
        path_stem: The path without its suffix; what follows a dot in it belongs to the name.

    Returns:
        The paths of the PNG, of the SVG and of the PDF.

    Raises:
        OSError: A file cannot be written; an older one is then left as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_figure(Figure, Path(folder) / "empty")]
        ['empty.png', 'empty.svg', 'empty.pdf']
    """
    with rc_context():
        # Nothing of the reader's own settings: the figure is the same on every machine.
        rcdefaults()
        rc_file(STYLE)
        figure = draw()
        paths = [Path(f"{path_stem}.{kind}") for kind in _FORMATS]
        for path, (kind, metadata) in zip(paths, _FORMATS.items(), strict=True):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            write_atomically(path, content.getvalue())
    return paths


def break_axis(panel: Axes, middle: float, half: float) -> None:
    """Two strokes across the lower axis, with the axis wiped out between them.

    Args:
        panel: Whose axis is broken.
        middle, half: Where, and half how wide, in the axis' own units.
    """
    below = panel.get_xaxis_transform()
    common: dict[str, Any] = {"transform": below, "clip_on": False, "solid_capstyle": "butt"}
    panel.plot([middle - half, middle + half], [0, 0], color="white", lw=2.5, zorder=8, **common)
    for x in (middle - half, middle + half):
        stroke = [x - half / 2, x + half / 2]
        panel.plot(stroke, [-0.02, 0.02], color="#444444", lw=0.8, zorder=9, **common)
