"""Warm start: an adapter that begins its training at the parameters of a saved one."""

from pathlib import Path, PurePath

from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.config import PeftConfig

STARTABLE = ("grasp", "stochgrasp")
"""The adapters of a study that a saved one can start."""
# Settings under which equal parameters mean the same function.
_SAME = ("groups", "grouping", "grouping_seed", "form")
# The standard deviations of StochGRASP, which a GRASP adapter does not have.
_SIGMAS = "_log_sigma"


def start_from(model: PeftModel, path: str | Path) -> None:
    """Set the active adapter and the task head of a model to those of a saved adapter, in place.

    A StochGRASP adapter also starts from a GRASP adapter: it takes its scales and shifts as means,
    and its standard deviations stay as they are.

    Args:
        model: A model with an adapter of the same method, or with StochGRASP for a saved GRASP.
        path: The folder of the saved adapter.

    Raises:
        ValueError: The saved adapter is of another pre-trained model, of another method, of other
            layers or groups, or of a task with another head.

    Example:
        ``start_from(get_peft_model(base_model, StochGraspConfig(groups=64)), "runs/train/grasp")``
    """
    saved, config = PeftConfig.from_pretrained(str(path)), model.active_peft_config
    names = [each.base_model_name_or_path or "" for each in (saved, config)]
    if PurePath(names[0]).name != PurePath(names[1]).name:
        raise ValueError(
            f"The adapter in {path} is of the model {names[0]} and cannot start one of {names[1]}: "
            "give one that was trained on the same model."
        )
    methods = [str(each.peft_type).rpartition(".")[2] for each in (saved, config)]
    if methods[0] != methods[1] and methods != ["GRASP", "STOCHGRASP"]:
        raise ValueError(
            f"The adapter in {path} is of the method {methods[0]} and cannot start one of "
            f"{methods[1]}: give one of the same method, or a GRASP adapter for StochGRASP."
        )
    for name in _SAME:
        there, here = getattr(saved, name, None), getattr(config, name, None)
        if there != here:
            raise ValueError(
                f"The adapter in {path} has {name} {there!r} and cannot start one with {here!r}: "
                "give the same setting."
            )
    state = load_peft_weights(str(path), device="cpu")
    if methods[0] != methods[1]:
        state = {name.replace(".grasp_", ".stochgrasp_"): v for name, v in state.items()}
    adapter = str(model.active_adapter)
    own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    shapes = {name: tuple(v.shape) for name, v in own.items()}
    found = {name: tuple(v.shape) for name, v in state.items()}
    wrong = [
        name
        for name in sorted(shapes.keys() | found.keys())
        if shapes.get(name) != found.get(name)
        and not (name.endswith(_SIGMAS) and name not in found)
    ]
    if wrong:
        raise ValueError(
            f"The adapter in {path} cannot start this one: {len(wrong)} parameters differ, such as "
            f"{wrong[0]}, of shape {found.get(wrong[0])} there and {shapes.get(wrong[0])} here; "
            "method, layers, groups and task must be the same."
        )
    set_peft_model_state_dict(model, own | state, adapter_name=adapter)
