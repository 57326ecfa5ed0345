"""The adapters that can be compared, by name: GRASP, StochGRASP and what they are held against."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig
from peft.config import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig


@dataclass(frozen=True)
class AdapterMethod:
    """One adapter as users name it.

    Attributes:
        title: As figures and tables spell it out.
        trains: What is learned.
        reference: The publication.
        config: Gives the PEFT configuration from the settings that its `PeftConfig` has.
    """

    title: str
    trains: str
    reference: str
    config: Callable[..., PeftConfig]


def _grasp(groups: int, target_modules: str | list[str], **_: object) -> PeftConfig:
    return GraspConfig(task_type="SEQ_CLS", groups=groups, target_modules=target_modules)


def _stochgrasp(
    groups: int,
    target_modules: str | list[str],
    noise_weight: float,
    noise_target: float | str,
    sampling: str,
) -> PeftConfig:
    return StochGraspConfig(
        task_type="SEQ_CLS",
        groups=groups,
        target_modules=target_modules,
        noise_weight=noise_weight,
        noise_target=noise_target,
        sampling=sampling,  # type: ignore[arg-type]  # checked by the configuration itself
    )


def _head(**_: object) -> PeftConfig:
    # peft's own way to say: no module is adapted, only the task head is trained and saved.
    return LoraConfig(task_type="SEQ_CLS", target_modules=DUMMY_TARGET_MODULES)


ADAPTERS: dict[str, AdapterMethod] = {
    "grasp": AdapterMethod(
        "GRASP",
        "K shared scale-and-shift pairs on the inputs of linear layers",
        "Bal and Sengupta, arXiv 2512.04296",
        _grasp,
    ),
    "stochgrasp": AdapterMethod(
        "StochGRASP",
        "a Gaussian for each of GRASP's numbers",
        "Bal and Sengupta, arXiv 2512.04296",
        _stochgrasp,
    ),
    "head": AdapterMethod("linear head", "the task head alone", "-", _head),
}


def adapter_config(name: str, **settings: object) -> PeftConfig:
    """Return the PEFT configuration of an adapter by its name.

    Args:
        name: A key of `ADAPTERS`.
        settings: ``groups``, ``target_modules``, ``noise_weight``, ``noise_target`` and
            ``sampling``; each adapter takes those that it has.

    Raises:
        ValueError: An unknown name, or a setting out of its range.
    """
    if name not in ADAPTERS:
        close = difflib.get_close_matches(name, ADAPTERS, n=1)
        hint = f"did you mean '{close[0]}'? The" if close else "the"
        raise ValueError(
            f"There is no adapter '{name}': {hint} adapters are {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[name].config(**settings)
