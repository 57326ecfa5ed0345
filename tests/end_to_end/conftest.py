"""The built-in model, on little enough data for a test."""

import os
from pathlib import Path

import pytest
from peft import PeftModel, get_peft_model

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.tasks import Task, load_base_model

CONFIGS = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The official GLUE files, which are not ours to hand on."""
    beside = Path(__file__).parents[3] / "shared" / "glue"
    folder = Path(os.environ.get("ANALOG_GRASP_GLUE", beside))
    if not folder.is_dir():
        pytest.skip(f"no GLUE files in {folder}; set ANALOG_GRASP_GLUE to their folder")
    return folder


@pytest.fixture(scope="session")
def adapted():
    """Puts a new adapter on the built-in model."""

    def make(task: Task, adapter: str = "grasp") -> PeftModel:
        config = CONFIGS[adapter](task_type="SEQ_CLS", groups=16)
        return get_peft_model(load_base_model(task), config)

    return make
