"""Arguments of `train`: invalid ones, and those that have no effect without another one."""

import warnings

import pytest
from peft import get_peft_model
from small_models import same_bits
from transformers import TrainerCallback

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.devices.card import DeviceCard
from analog_grasp.training import train


@pytest.fixture
def model(reader):
    return get_peft_model(reader("bert"), GraspConfig(task_type="SEQ_CLS", groups=4))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"shift_lr_ratio": 0}, "shift_lr_ratio is 0: a finite number above 0"),
        ({"sigma_lr_ratio": -1.0}, "sigma_lr_ratio is -1.0: a finite number above 0"),
        ({"noise_weight_schedule": "cosine"}, "Unknown schedule 'cosine'"),
        ({"noise_target_schedule": None}, "Unknown schedule None"),
        ({"then_steps": 0}, "then_steps is 0: a whole number of at least 1"),
        ({"then_steps": -1}, "then_steps is -1"),
        ({"then_steps": 2.5}, "then_steps is 2.5"),
        ({"then": None, "then_steps": 5}, "then_steps is 5, which has no effect without then"),
        ({"epochs": 0}, "epochs is 0: a finite number above 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0: a whole number of at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0: a finite number above 0"),
        ({"eval_steps": 2}, "eval_steps is 2, which has no effect without evaluate_on"),
        ({"save_steps": 2}, "save_steps is 2, which has no effect without output_dir or"),
        ({"injection": -0.1}, "injection is -0.1: a finite standard deviation of at least 0"),
        ({"injection": float("inf")}, "injection is inf"),
        ({"injection": float("nan")}, "injection is nan"),
        ({"injection": None}, "injection is None"),
        ({"injection": DeviceCard.load("ideal")}, "ideal has no drift time"),
        ({"then": DeviceCard.load("ideal")}, "ideal has no drift time"),
        ({"then": 3}, "3 is no device at a time"),
        ({"sigma_lr_ratio": 7.0}, "sigma_lr_ratio is 7.0, which has no effect on this adapter"),
        ({"noise_weight_schedule": "linear"}, "noise_weight_schedule is 'linear', which has no"),
        ({"noise_target_schedule": "linear"}, "it applies to StochGRASP; omit it"),
        ({"teacher": 0, "label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
    ],
)
def test_invalid_settings_raise_before_training(model, settings, sentence):
    # Nothing after the checks could run without a task.
    with pytest.raises(ValueError, match=sentence) as caught:
        train(model, None, **{"then": "ideal@0s"} | settings)
    assert str(caught.value).endswith(".")


def test_logging_steps_alone_log_the_loss(model, task):
    class Logs(TrainerCallback):
        losses = 0

        def on_log(self, args, state, control, logs, **_):
            self.losses += "loss" in logs

    logs = Logs()
    train(model, task, max_steps=3, logging_steps=1, callbacks=[logs])
    assert logs.losses == 3


def learned(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_a_training_of_one_step_says_that_nothing_was_learned(adapted, task):
    few, model = task.subset(train=4), adapted("grasp")
    before = {name: value.clone() for name, value in learned(model).items()}
    with pytest.warns(UserWarning, match=r"had one step, .* nothing was learned: train for more"):
        train(model, few, epochs=1, batch_size=4)
    assert same_bits(learned(model), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, few, epochs=2, batch_size=4)
    assert not same_bits(learned(model), before)
