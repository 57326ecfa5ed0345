"""Refinement of GRASP: more groups per layer, which compute the same at first."""

import torch
from peft import PeftModel
from torch import nn

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.layer import GraspLinear, group_index


def refine(model: PeftModel, groups: int) -> None:
    """Divide the groups of the active GRASP adapter into parts with their values, in place.

    The outputs stay as they are. Each part can then be fitted on its own.

    Args:
        model: The model.
        groups: The new number of groups per layer, such as a multiple of the present one.

    Raises:
        ValueError: The adapter is neither GRASP nor StochGRASP, or a new group would have features
            of several present ones.

    Example:
        ``refine(model, 384)``
    """
    name = str(model.active_adapter)
    config = model.peft_config[name]
    if not isinstance(config, GraspConfig):
        raise ValueError(
            f"groups is {groups}, which has no effect on {config.peft_type}: it applies to GRASP "
            "and StochGRASP."
        )
    for layer in model.modules():
        if not (isinstance(layer, GraspLinear) and name in layer.group_of):
            continue
        old = layer.group_of[name]
        new = group_index(layer.in_features, groups, config.grouping, config.grouping_seed).to(
            old.device
        )
        parent = torch.zeros(groups, dtype=old.dtype, device=old.device)
        parent[new] = old
        if not torch.equal(parent[new], old):
            present = int(old.max()) + 1
            raise ValueError(
                f"groups is {groups}, which does not divide the adapter's {present} "
                f"{config.grouping} groups into parts: a multiple of {present} does."
            )
        for kind in layer.adapter_layer_names:
            values = getattr(layer, kind)
            if name in values:
                values[name] = nn.Parameter(
                    values[name].detach()[parent].clone(), requires_grad=values[name].requires_grad
                )
        layer.group_of[name] = new
    config.groups = groups
