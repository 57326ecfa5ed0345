"""What adapters have learned: the distribution of scales, shifts and sigmas, layer by layer.

Read from the folders of saved adapters alone; their pre-trained models are not needed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from analog_grasp.report.inspection_figure import draw
from analog_grasp.report.modality import Values, dip, dip_p_value, holm
from analog_grasp.report.tables import TextCell, TextRow, TextTable, markdown_table
from analog_grasp.utils.io import write_atomically

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ALL_LAYERS = "all layers"
LEVEL = 0.05
LEGEND = (
    "Mean ± standard deviation of the K numbers of a layer, and p, how likely they are where there "
    "is one mode: Hartigan's dip test with Holm's correction over the layers; † below "
    f"{LEVEL:g}, several modes. Sigmas are relative to the layer's largest scale or shift."
)
_METHODS = {"GRASP": "GRASP", "STOCHGRASP": "StochGRASP"}
# By the end of a tensor's name; those of sigmas are logarithms.
_PARAMETERS = {
    "grasp_scale": "scale",
    "grasp_shift": "shift",
    "stochgrasp_scale": "scale",
    "stochgrasp_shift": "shift",
    "stochgrasp_scale_log_sigma": "sigma of the scale",
    "stochgrasp_shift_log_sigma": "sigma of the shift",
}


@dataclass(frozen=True)
class LayerModes:
    """The numbers of one kind in one layer of one adapter, and whether they have one mode.

    Attributes:
        adapter: What the adapter is called: its folder and K.
        parameter: scale, shift, sigma of the scale or sigma of the shift.
        layer: The layer's name in the pre-trained model, or `ALL_LAYERS`.
        values: The numbers, of shape (K,), or all those of the layers together.
        p: The dip test's p-value.
        p_holm: The same after Holm's correction over the layers; for all layers together, p.
    """

    adapter: str
    parameter: str
    layer: str
    values: Values
    p: float
    p_holm: float

    @property
    def modes(self) -> str:
        """``"several"`` where one mode is rejected at the level of 5 %, else ``"one"``."""
        return "several" if self.p_holm < LEVEL else "one"


def inspected(folders: Sequence[Path]) -> list[LayerModes]:
    """Read saved adapters and test the distribution of what each layer has learned.

    Args:
        folders: Of GRASP or StochGRASP adapters, as `save_pretrained` writes them.

    Returns:
        By adapter and parameter: each layer, layer 10 after layer 2, and all layers together.

    Raises:
        FileNotFoundError: A folder holds no adapter.
        ValueError: An adapter is of another kind, a file is damaged, or a folder is named twice.
    """
    configs = [_config(folder) for folder in folders]
    names = _names(folders, configs)
    return [
        modes
        for name, folder in zip(names, folders, strict=True)
        for parameter, layers in _learned(folder).items()
        for modes in _tested(name, parameter, layers)
    ]


def _config(folder: Path) -> dict[str, object]:
    path = folder / CONFIG_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"The folder {folder} holds no adapter: it should hold {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, which save_pretrained writes."
        )
    try:
        config = json.loads(path.read_bytes())
        kind = str(config["peft_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"The file {path} is not one that peft wrote ({error}): train the adapter again."
        ) from error
    if kind not in _METHODS:
        raise ValueError(
            f"The adapter in {folder} is of the kind {kind[:40]}, which has learned no "
            f"shared scales and shifts: give a {' or '.join(_METHODS.values())} adapter."
        )
    return config


def _names(folders: Sequence[Path], configs: Sequence[dict[str, object]]) -> list[str]:
    """What tables call the adapters: by their folders' last parts where these tell them apart."""
    for shown in (lambda path: path.resolve().name, str):
        names = [
            f"{shown(folder)}, K = {config.get('groups')}"
            for folder, config in zip(folders, configs, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    twice = next(str(folder) for folder in folders if list(folders).count(folder) > 1)
    raise ValueError(f"The adapter in {twice} is named more than once: name each once.")


def _learned(folder: Path) -> dict[str, dict[str, Values]]:
    """The numbers of an adapter by parameter and layer."""
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"The file {path} is damaged ({error}): train the adapter again."
        ) from error
    found: dict[str, dict[str, Values]] = {name: {} for name in _PARAMETERS.values()}
    for key in sorted(tensors, key=_in_order):
        layer, _, end = key.removeprefix("base_model.model.").rpartition(".")
        if end in _PARAMETERS:
            values = tensors[key].astype(np.float64).ravel()
            if not np.isfinite(values).all():
                raise ValueError(
                    f"The adapter in {folder} holds numbers in {key} that are not finite: train it "
                    "again."
                )
            found[_PARAMETERS[end]][layer] = np.exp(values) if "log" in end else values
    if not found["scale"]:
        raise ValueError(f"The file {path} holds no scales: train the adapter again.")
    return {name: layers for name, layers in found.items() if layers}


def _in_order(key: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 2."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]


def _tested(adapter: str, parameter: str, layers: dict[str, Values]) -> list[LayerModes]:
    p_values = np.array([dip_p_value(values) for values in layers.values()])
    tests = zip(layers.items(), p_values.tolist(), holm(p_values).tolist(), strict=True)
    every = np.concatenate(list(layers.values()))
    together = dip_p_value(every)
    return [
        *(LayerModes(adapter, parameter, layer, v, p, holmed) for (layer, v), p, holmed in tests),
        LayerModes(adapter, parameter, ALL_LAYERS, every, together, together),
    ]


def tables(found: Sequence[LayerModes]) -> list[TextTable]:
    """One table a parameter: a row a layer, a column an adapter; see `LEGEND`."""
    adapters = list(dict.fromkeys(modes.adapter for modes in found))
    return [
        TextTable(
            parameter,
            ("layer", *adapters),
            tuple(
                TextRow(layer, tuple(_cell(found, parameter, layer, name) for name in adapters))
                for layer in _distinct(m.layer for m in found if m.parameter == parameter)
            ),
        )
        for parameter in dict.fromkeys(modes.parameter for modes in found)
    ]


def _distinct(layers: Iterable[str]) -> list[str]:
    """The layers of all adapters, those of all together at the end."""
    names = dict.fromkeys(layers)
    return [*(name for name in names if name != ALL_LAYERS), ALL_LAYERS]


def _cell(found: Sequence[LayerModes], parameter: str, layer: str, adapter: str) -> TextCell:
    for modes in found:
        if (modes.parameter, modes.layer, modes.adapter) == (parameter, layer, adapter):
            mark = "†" if modes.modes == "several" else " "
            mean, std = modes.values.mean(), modes.values.std()
            return TextCell(f"{mean:.3f} ± {std:.3f}  p {modes.p_holm:.3f}{mark}")
    return TextCell("-")


def sentences(found: Sequence[LayerModes]) -> list[str]:
    """What the tests say: in how many layers of each adapter there are several modes."""
    told = []
    groups: dict[tuple[str, str], list[LayerModes]] = {}
    for modes in found:
        groups.setdefault((modes.parameter, modes.adapter), []).append(modes)
    for (parameter, adapter), (*layers, together) in groups.items():
        several = sum(modes.modes == "several" for modes in layers)
        told.append(
            f"{adapter}: the {parameter} has several modes in {several} of {len(layers)} layers, "
            f"and {together.modes} over all layers together (p {together.p:.4f})."
        )
    return told


def write_inspection(found: Sequence[LayerModes], directory: Path) -> list[Path]:
    """Write inspection.csv, inspection.md and the figure.

    Returns:
        The paths of inspection.csv, .md, .png, .svg and .pdf.

    Raises:
        OSError: A file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data, page = directory / "inspection.csv", directory / "inspection.md"
    write_atomically(data, _csv(found).encode())
    told = "\n".join(f"- {sentence}" for sentence in sentences(found))
    parts = ["# What the adapters have learned", LEGEND, told]
    parts += [markdown_table(table) for table in tables(found)]
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    return [data, page, *draw(found, directory / "inspection")]


def _csv(found: Sequence[LayerModes]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "adapter",
            "parameter",
            "layer",
            "count",
            "mean",
            "std",
            "min",
            "max",
            "dip",
            "p",
            "p_holm",
            "modes",
        ]
    )
    for m in found:
        spread = (
            v.item() for v in (m.values.mean(), m.values.std(), m.values.min(), m.values.max())
        )
        writer.writerow(
            [
                m.adapter,
                m.parameter,
                m.layer,
                len(m.values),
                *spread,
                dip(m.values),
                m.p,
                m.p_holm,
                m.modes,
            ]
        )
    return text.getvalue()
