"""Distribution of the learned parameters of saved adapters, layer by layer: tables and figure.

Only the folders of the adapters are read; the pre-trained models are not needed. A dip test shows
whether the values of a layer have a single mode; unlike a mixture, it assumes no form of the modes.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from safetensors import SafetensorError

from analog_grasp.report.figures import PALETTE, draw_legend, figure_files
from analog_grasp.report.tables import TextTable, markdown_bullets, markdown_table
from analog_grasp.study.statistics import holm
from analog_grasp.utils.io import write_atomically

Values = NDArray[np.float64]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ALL_LAYERS = "all layers"
LEVEL = 0.05
MIN_VALUES = 4
"""With fewer values, a single mode is never rejected."""
LEGEND = (
    "Mean ± standard deviation of the K parameters of a layer, and the p-value of Hartigan's dip"
    " test of a single mode, with Holm's correction over the layers; † marks several modes"
    f" (p < {LEVEL:g}). Sigmas are relative to the layer's largest scale or shift."
)
_TITLES = {"GRASP": "GRASP", "STOCHGRASP": "StochGRASP"}
# Parameters by the end of a tensor's name; sigmas are stored as logarithms.
_PARAMETERS = {
    "grasp_scale": "scale",
    "grasp_shift": "shift",
    "stochgrasp_scale": "scale",
    "stochgrasp_shift": "shift",
    "stochgrasp_scale_log_sigma": "sigma of the scale",
    "stochgrasp_shift_log_sigma": "sigma of the shift",
}
_COLUMNS = (
    "adapter", "parameter", "layer", "count", "mean", "std", "min", "max", "dip", "p", "p_holm",
    "modes", "sample",
)  # fmt: skip
_PANEL_INCHES = (2.9, 3.3)
_COLOURS = {"one": PALETTE[0], "several": PALETTE[1]}
# Height of a density, and the gap below that of all layers, in distances between two layers.
_HEIGHT, _GAP = 1.8, 2
# Equal values have a density too: the smallest bandwidth as a share of the panel's width.
_LEAST_BANDWIDTH = 1 / 150
_POINTS = 400
# Simulated samples of the dip test, and their seed.
_SAMPLES, _SEED = 4_000, 0
# The distribution of sqrt(n) dip is nearly constant for larger n.
_LARGE = 100


def inspect_adapters(folders: Sequence[Path]) -> pandas.DataFrame:
    """Read saved adapters and test the modes of the learned parameters of each layer.

    Args:
        folders: Folders of GRASP or StochGRASP adapters, as `save_pretrained` writes them.

    Returns:
        One row per adapter, parameter and layer, the layers in natural order, and one for all of
        them together. Its columns are ``adapter``, the folder and K; ``parameter``, such as
        "sigma of the scale"; ``layer``, the name in the pre-trained model or `ALL_LAYERS`;
        ``count``, ``mean``, ``std``, ``min`` and ``max`` of the values; their ``dip``; ``p`` of
        the dip test; ``p_holm`` after Holm's correction over the layers; ``modes``, "several"
        where a single mode is rejected at the level of 5 %, else "one"; and ``sample``, the
        values, of shape (K,).

    Raises:
        FileNotFoundError: A folder holds no adapter.
        ValueError: An adapter is of another type, a file is damaged, or a folder is repeated.
    """
    groups = [_groups(folder) for folder in folders]
    rows = []
    for label, folder in zip(_labels(folders, groups), folders, strict=True):
        for parameter, layers in _parameters(folder).items():
            together = np.concatenate(list(layers.values()))
            each, whole = [dip_p_value(x) for x in layers.values()], dip_p_value(together)
            samples = [*layers.items(), (ALL_LAYERS, together)]
            tests = zip(samples, [*each, whole], [*holm(each).tolist(), whole], strict=True)
            for (layer, x), p, p_holm in tests:
                figures = len(x), x.mean(), x.std(), x.min(), x.max(), dip(x)
                modes = "several" if p_holm < LEVEL else "one"
                rows.append((label, parameter, layer, *figures, p, p_holm, modes, x))
    return pandas.DataFrame(rows, columns=_COLUMNS)


def _groups(folder: Path) -> int:
    """Return the K of an adapter; that of its largest layer where the configuration has none."""
    path = folder / CONFIG_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"The folder {folder} holds no adapter: expected {CONFIG_FILE} and {WEIGHTS_FILE}, as "
            "written by save_pretrained."
        )
    try:
        config = json.loads(path.read_bytes())
        kind = str(config["peft_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"The file {path} is not a valid adapter configuration ({error}): train the adapter "
            "again."
        ) from error
    if kind not in _TITLES:
        raise ValueError(
            f"The adapter in {folder} is of type {kind[:40]}, which has no shared scales and "
            f"shifts: use a {' or '.join(_TITLES.values())} adapter."
        )
    return config.get("groups") or max(map(len, _parameters(folder)["scale"].values()))


def _labels(folders: Sequence[Path], groups: Sequence[int]) -> list[str]:
    """Return labels of the adapters: names of their folders, or paths where names are equal."""
    for shorten in (lambda path: path.resolve().name, str):
        pairs = zip(folders, groups, strict=True)
        labels = [f"{shorten(folder)}, K = {count}" for folder, count in pairs]
        if len(set(labels)) == len(labels):
            return labels
    repeated = next(folder for folder in folders if list(folders).count(folder) > 1)
    raise ValueError(f"The adapter in {repeated} is given more than once: give each once.")


def _parameters(folder: Path) -> dict[str, dict[str, Values]]:
    """Return the learned values by parameter and layer, the layers in natural order."""
    # numpy has no bfloat16.
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"The file {path} is damaged ({error}): train the adapter again."
        ) from error

    def natural(key: str) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", key)
        return [(int(part), "") if part.isdigit() else (0, part) for part in parts]

    found: dict[str, dict[str, Values]] = {name: {} for name in _PARAMETERS.values()}
    for key in sorted(tensors, key=natural):
        layer, _, end = key.removeprefix("base_model.model.").rpartition(".")
        if end in _PARAMETERS:
            values: Values = tensors[key].double().numpy().ravel()
            if not np.isfinite(values).all():
                raise ValueError(
                    f"The adapter in {folder} has values in {key} that are not finite: train it "
                    "again."
                )
            found[_PARAMETERS[end]][layer] = np.exp(values) if "log" in end else values
    if not found["scale"]:
        raise ValueError(f"The file {path} holds no scales: train the adapter again.")
    return {name: layers for name, layers in found.items() if layers}


def dip(values: Values) -> float:
    """Return the dip of a sample, between 1 / (2 n) and 1 / 4.

    The dip is the largest distance between the distribution function of the values and that of
    the nearest distribution with one mode.

    Args:
        values: Shape (n,), in any order.

    Source:
        J. A. Hartigan and P. M. Hartigan, "The Dip Test of Unimodality", Annals of Statistics 13
        (1985), section 2.

    Example:
        >>> dip(np.array([0.0, 0.0, 1.0, 1.0])), dip(np.array([0.0, 1.0, 2.0, 3.0]))
        (0.25, 0.125)
    """
    x = np.sort(values)
    count = len(x)
    if count < MIN_VALUES or x[0] == x[-1]:
        return 1 / (2 * count)
    # In steps of the distribution function, of which the least possible distance is one.
    distance, low, high = 1.0, 0, count - 1
    points = x.tolist()
    while True:
        convex, concave = _hull(points, low, high, 1), _hull(points, low, high, -1)
        knots = np.union1d(convex, concave)
        below, above = (np.interp(x[knots], x[hull], hull) for hull in (convex, concave))
        gaps = above - below + 1
        widest = int(gaps.argmax())
        # The mode lies between the knots of the two hulls on either side of the widest gap.
        new_low = int(convex[convex <= knots[widest]][-1])
        new_high = int(concave[concave >= knots[widest]][0])
        if gaps[widest] <= distance or (new_low, new_high) == (low, high):
            return distance / (2 * count)
        left, right = np.arange(low, new_low + 1), np.arange(new_high, high + 1)
        under = left - np.interp(x[left], x[convex], convex) + 1
        over = np.interp(x[right], x[concave], concave) - right + 1
        distance = max(distance, float(under.max()), float(over.max()))
        low, high = new_low, new_high


def _hull(x: list[float], low: int, high: int, side: int) -> NDArray[np.int64]:
    """Return the knots of the greatest convex minorant (side 1) or least concave majorant (-1)."""
    knots: list[int] = []
    for i in range(low, high + 1):
        if knots and x[i] == x[knots[-1]]:
            # Of equal values the first bounds the minorant and the last the majorant.
            if side > 0:
                continue
            knots.pop()
        while len(knots) > 1:
            a, b = knots[-2:]
            if side * ((b - a) * (x[i] - x[b]) - (i - b) * (x[b] - x[a])) < 0:
                break
            knots.pop()
        knots.append(i)
    return np.array(knots)


def dip_p_value(values: Values) -> float:
    """Return the p-value of the dip test; a small one rejects a single mode.

    The reference is the uniform distribution, the least favourable one with a single mode. It is
    simulated with a fixed seed, so the p-value is at least 1 / 4001 and the same in every call; a
    sample of more than 100 values is judged by the square root of its size times its dip.

    Args:
        values: Shape (n,), in any order.

    Example:
        >>> dip_p_value(np.array([0.0] * 8 + [1.0] * 8)) < 0.001
        True
    """
    if len(values) < MIN_VALUES or np.ptp(values) == 0:
        return 1.0
    null = _uniform_dips(min(len(values), _LARGE))
    scaled = dip(values) * np.sqrt(len(values))
    return float((1 + np.count_nonzero(null >= scaled)) / (1 + len(null)))


@lru_cache
def _uniform_dips(count: int) -> Values:
    """Return the dips of uniform samples of `count` values, times the square root of `count`."""
    samples = np.random.default_rng(_SEED).random((_SAMPLES, count))
    return np.array([dip(sample) for sample in samples]) * np.sqrt(count)


def inspection_tables(found: pandas.DataFrame) -> list[TextTable]:
    """Return one table per parameter: a row per layer, a column per adapter; see `LEGEND`."""
    adapters, tables = list(found.adapter.unique()), []
    for parameter, own in found.groupby("parameter", sort=False):
        entries = {
            (m.layer, m.adapter): f"{m.mean:.3f} ± {m.std:.3f}"
            f"  p {m.p_holm:.3f}{'†' if m.modes == 'several' else ' '}"
            for m in own.itertuples()
        }
        rows = [
            (layer, *(entries.get((layer, name), "-") for name in adapters))
            for layer in sorted(own.layer.unique(), key=ALL_LAYERS.__eq__)
        ]
        tables.append(TextTable(str(parameter), ("layer", *adapters), rows))
    return tables


def inspection_findings(found: pandas.DataFrame) -> list[str]:
    """Return per adapter and parameter the number of layers with several modes, as sentences."""
    sentences = []
    for (parameter, adapter), own in found.groupby(["parameter", "adapter"], sort=False):
        *layers, together = own.itertuples()
        sentences.append(
            f"{adapter}: the {parameter} has several modes in"
            f" {sum(each.modes == 'several' for each in layers)} of {len(layers)} layers, and"
            f" {together.modes} over all layers together (p {together.p:.4f})."
        )
    return sentences


def write_inspection(found: pandas.DataFrame, directory: Path) -> list[Path]:
    """Write inspection.csv, inspection.md and the figure of the densities."""
    directory.mkdir(parents=True, exist_ok=True)
    data, page = directory / "inspection.csv", directory / "inspection.md"
    text = found.drop(columns="sample").to_csv(index=False, lineterminator="\n")
    write_atomically(data, text.encode())
    parts = ["# Learned parameters by layer", LEGEND, markdown_bullets(inspection_findings(found))]
    parts += [markdown_table(table) for table in inspection_tables(found)]
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    return [data, page, *_write_densities(found, directory / "inspection")]


def _write_densities(found: pandas.DataFrame, path_stem: Path) -> list[Path]:
    """Draw the density of every layer: a column per adapter and a row per parameter."""
    parameters, adapters = found.parameter.unique(), found.adapter.unique()
    width, height = _PANEL_INCHES
    size = width * len(adapters) + 0.8, height * len(parameters) + 0.6
    with figure_files(path_stem, size) as (figure, paths):
        grid = figure.subplots(len(parameters), len(adapters), sharex="row", squeeze=False)
        for row, parameter in zip(grid, parameters, strict=True):
            every = found[found.parameter == parameter]
            for panel, adapter in zip(row, adapters, strict=True):
                own = every[every.adapter == adapter]
                # GRASP has no sigmas.
                if own.empty:
                    panel.set_axis_off()
                    continue
                _draw_layers(panel, own, every["min"].min(), every["max"].max())
                panel.set_xlabel(parameter)
                panel.set_title(adapter)
            row[0].set_ylabel("layer")
        titles = {"one": "one mode not rejected", "several": "several modes"}
        lines = [Line2D([], [], color=_COLOURS[m], label=t) for m, t in titles.items()]
        draw_legend(figure, lines)
    return paths


def _draw_layers(panel: Axes, rows: pandas.DataFrame, low: float, high: float) -> None:
    """Draw the first layer at the bottom, and all layers together above the last."""
    margin = 0.06 * (high - low) or 0.5
    x = np.linspace(low - margin, high + margin, _POINTS)
    for place, (sample, modes) in enumerate(zip(rows["sample"], rows.modes, strict=True)):
        base = place + _GAP * (place + 1 == len(rows))
        density = _density(sample, x)
        top = base + _HEIGHT * density / density.max()
        colour = _COLOURS[modes]
        panel.fill_between(x, base, top, color="white", linewidth=0, zorder=-place)
        panel.fill_between(x, base, top, color=colour, alpha=0.35, linewidth=0, zorder=-place)
        panel.plot(x, top, color=colour, linewidth=0.9, zorder=-place)
    count = len(rows) - 1
    ticks = list(range(0, count, max(1, count // 6)))
    panel.set_yticks([*ticks, count + _GAP], [*(str(tick + 1) for tick in ticks), "all"])
    panel.grid(visible=False)
    panel.set_xlim(x[0], x[-1])
    # Few, because long labels would overlap.
    panel.locator_params(axis="x", nbins=5)


def _density(values: Values, x: Values) -> Values:
    """Return a sum of Gaussians with Silverman's bandwidth."""
    std = min(values.std(), np.subtract(*np.percentile(values, [75, 25])) / 1.34)
    bandwidth = max(0.9 * std * len(values) ** -0.2, _LEAST_BANDWIDTH * np.ptp(x))
    return np.exp(-0.5 * ((x - values[:, None]) / bandwidth) ** 2).sum(axis=0)
