"""Our methods as methods of PEFT: the one place that touches peft's registry."""

import peft
from aenum import extend_enum
from peft.utils import PeftType, register_peft_method

from analog_grasp.adapters.bitfit import BitFitConfig, BitFitModel
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.full import FullConfig, FullModel
from analog_grasp.adapters.model import GraspModel, StochGraspModel

_METHODS = {
    "grasp": (GraspConfig, GraspModel),
    "stochgrasp": (StochGraspConfig, StochGraspModel),
    "bitfit": (BitFitConfig, BitFitModel),
    "full": (FullConfig, FullModel),
}


def register() -> None:
    """Make our methods known to peft; a second call does nothing.

    peft's `register_peft_method` takes only members of its own `PeftType` enumeration, which has
    no door for others, so the enumeration is extended first.

    Raises:
        ImportError: The installed peft refuses the registration.

    Example:
        >>> register()
        >>> PeftType("GRASP").value
        'GRASP'
    """
    for name, (config_cls, model_cls) in _METHODS.items():
        if name.upper() in PeftType.__members__:
            continue
        try:
            extend_enum(PeftType, name.upper(), name.upper())
            register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImportError(
                f"peft {peft.__version__} refuses {name} as a method ({error}): "
                "install the peft that analog-grasp names in its requirements."
            ) from error
