"""Sharpness-aware minimisation: the step, what it keeps, and its radius."""

import pytest
import torch
from peft import get_peft_model
from small_models import bits, same_bits

from analog_grasp import GraspConfig, StochGraspConfig, train
from analog_grasp.training import weight_noise

RATE, RADIUS = 0.1, 0.5
# One step of plain gradient descent on all 64 sentences.
STEP = {
    "epochs": 1,
    "batch_size": 64,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Multiply in float32 on every processor, as the expected gradients do."""
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: False)


@pytest.fixture
def adapted(reader):
    def make(config=GraspConfig, **settings):
        given = {"task_type": "SEQ_CLS", "groups": 4, "learn_shift": False} | settings
        return get_peft_model(reader("bert", dropout=False), config(**given))

    return make


def learned(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model, task):
    tokenizer = task.tokenizer_of(model)
    rows = task.training_rows(model, tokenizer)
    batch = task.collator(tokenizer)([rows[i] for i in range(len(rows))])
    return torch.autograd.grad(model(**batch).loss, learned(model))


def test_a_step_takes_the_gradient_at_the_shifted_parameters(adapted, task):
    model, expected = adapted(), adapted()
    before = [parameter.detach().clone() for parameter in learned(expected)]
    first = gradients(expected, task)
    norm = torch.stack([gradient.norm() for gradient in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(learned(expected), first, strict=True):
            parameter += RADIUS * gradient / norm
    second = gradients(expected, task)
    train(model, task, sam_radius=RADIUS, **STEP)
    for found, start, gradient, plain in zip(learned(model), before, second, first, strict=True):
        torch.testing.assert_close(found, start - RATE * gradient, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(gradient, plain, rtol=1e-2)


def test_a_small_radius_changes_little_and_draws_the_same_noise(adapted, task):
    found = []
    for radius in (0.0, 1e-7):
        model = adapted(StochGraspConfig)
        train(model, task, injection=0.04, sam_radius=radius, **STEP)
        found.append(learned(model))
    for plain, close in zip(*found, strict=True):
        torch.testing.assert_close(close, plain, rtol=1e-3, atol=1e-5)


def test_batches_that_are_accumulated_add_up(adapted, task):
    models = adapted(), adapted()
    for model, size in zip(models, (64, 32), strict=True):
        settings = STEP | {"batch_size": size, "gradient_accumulation_steps": 64 // size}
        train(model, task, sam_radius=1e-7, **settings)
    for one, two in zip(*map(learned, models), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_a_radius_changes_what_is_learned(adapted, task):
    models = adapted(), adapted()
    for model, radius in zip(models, (0.0, 0.5), strict=True):
        train(model, task, epochs=1, batch_size=16, sam_radius=radius)
    assert not same_bits(*map(bits, models))


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_is_none_raises(adapted, task, radius):
    with pytest.raises(ValueError, match="sam_radius is"):
        train(adapted(), task, sam_radius=radius)
