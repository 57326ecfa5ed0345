"""Whether an adapter learned anything is told after its training."""

import warnings

import numpy as np
import pytest
import torch

from analog_grasp.study.adapters import new_adapter, train_adapter
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent


@pytest.mark.parametrize("task", ["reviews", "glue/stsb"])
def test_one_answer_to_everything_is_told(asked, task):
    data_dir = None if task == "reviews" else asked["data_dir"]
    little = {"epochs": 0.05, "learning_rate": 1e-12}
    settings = resolve({**asked, **little, "task": task, "data_dir": data_dir})
    data = settings.task.load()
    model = new_adapter(settings, data, "grasp")
    head = model.get_base_model().classifier.modules_to_save["default"]
    torch.nn.init.zeros_(head.weight)
    told = rf"grasp gives one answer to \d+ training sentences of {task}: .* here 1e-12\)\."
    with pytest.warns(UserWarning, match=told):
        train_adapter(model, settings, data, "training grasp", silent)
    # Where answers differ there is nothing to tell, however poor they are.
    torch.nn.init.normal_(head.weight, std=1e4)
    head.bias.data -= torch.from_numpy(np.median(data.predict(model, "train"), axis=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_adapter(model, settings, data, "training grasp", silent)
