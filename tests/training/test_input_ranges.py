"""Input ranges that are learned in training: gradient, decay, files and trainings."""

import math

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import TrainingArguments

from analog_grasp import GraspConfig, deploy, train
from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.training import AdapterTrainer
from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.input_ranges import LearnedRanges, load_ranges, save_ranges

SMALL = {"injection": 0.0, "converters": "pcm-hermes-2", "epochs": 1, "batch_size": 4}


def ranges_of(x: torch.Tensor) -> LearnedRanges:
    ranges = LearnedRanges(["layer"])
    ranges.begin({"layer": x})
    return ranges


@pytest.fixture
def adapted(reader):
    """A tiny model with GRASP, ready to train on the tiny task."""

    def make():
        return get_peft_model(reader("bert"), GraspConfig(task_type="SEQ_CLS", groups=4))

    return make


def test_first_ranges_are_18_standard_deviations_or_the_largest_input():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ranges_of(x).values()["layer"] == pytest.approx(float(x.abs().max()))
    many = torch.cat([x, torch.zeros(1_000_000)])
    assert 18 * many.std() < x.abs().max()
    assert ranges_of(many).values()["layer"] == pytest.approx(18 * float(many.std()))
    assert ranges_of(torch.zeros(3)).values()["layer"] == 1.0
    assert ranges_of(torch.zeros(0, 3)).values()["layer"] == 1.0


@pytest.mark.parametrize(
    ("direction", "growth"), [(-1.0, -3.0), (1.0, 0.0)], ids=["loss falls", "loss rises"]
)
def test_clipped_inputs_ask_for_a_larger_range_only(direction, growth):
    ranges = ranges_of(torch.tensor([2.0, -2.0]))
    x = torch.tensor([1.0, -3.0, 5.0] + [0.0] * 97, requires_grad=True)
    clipped, size = ranges.clip("layer", x)
    assert size == pytest.approx(2.0)
    assert clipped[:3].tolist() == pytest.approx([1.0, -2.0, 2.0])
    (clipped * direction * torch.tensor([7.0, -1.0, 0.5] + [0.0] * 97)).sum().backward()
    assert ranges.log.grad.item() == pytest.approx(growth)
    ranges.add_decay()
    # Of the logarithm: two inputs are clipped, 98 % are within, so that the range decays too.
    assert ranges.log.grad.item() == pytest.approx(growth + 0.01)
    assert x.grad[:3].tolist() == [direction * 7.0, 0.0, 0.0]


def test_ranges_do_not_decay_where_many_inputs_are_clipped():
    ranges = ranges_of(torch.tensor([1.0, -1.0]))
    clipped, _ = ranges.clip("layer", torch.full((10,), 3.0, requires_grad=True))
    clipped.sum().backward()
    ranges.add_decay()
    assert ranges.log.grad.item() == 0.0


def test_a_layer_that_is_used_several_times_decays_once():
    layer = nn.Linear(4, 4)
    loop = ConverterLoop(nn.Sequential(layer, layer), "pcm-hermes-2", learn_ranges=True)
    loop.ranges.restore({"0": 100.0})
    x = torch.randn(8, 4)
    for _ in range(2):
        with loop.applied():
            layer(layer(x)).sum().backward()
    loop.ranges.add_decay()
    assert loop.ranges.log.grad.tolist() == pytest.approx([0.01])


@pytest.mark.parametrize(("batch_size", "batches"), [(32, 1), (8, 4)])
def test_the_decay_of_a_step_is_that_of_any_accumulation(
    adapted, task, monkeypatch, batch_size, batches
):
    # Nothing is clipped, so that the gradient is the decay alone.
    monkeypatch.setattr(LearnedRanges, "begin", lambda self, _: self.log.data.fill_(5.0))
    model, steps = adapted(), 2
    settings = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0}
    train(
        model, task, converters="pcm-hermes-2", learn_ranges=True, max_steps=steps,
        batch_size=batch_size, gradient_accumulation_steps=batches, **settings,
    )  # fmt: skip
    for size in model.input_ranges.values():
        assert 5.0 - math.log(size) == pytest.approx(steps * 0.01 * 0.01, rel=1e-2)


def test_layers_in_the_loop_compute_with_their_ranges():
    layer = nn.Linear(16, 4)
    loop = ConverterLoop(nn.Sequential(layer), "pcm-hermes-2", learn_ranges=True)
    x = torch.randn(8, 16)
    loop.begin(lambda: layer(x))
    loop.ranges.restore({"0": 0.7})
    with loop.applied(), torch.no_grad():
        clipped = layer(x)
    assert not torch.allclose(clipped, layer(x), atol=0.3)
    torch.testing.assert_close(
        clipped, nn.functional.linear(x.clamp(-0.7, 0.7), layer.weight, layer.bias),
        rtol=0, atol=0.2,
    )  # fmt: skip


def test_files_hold_the_ranges(tmp_path):
    assert load_ranges(tmp_path) == {}
    save_ranges({"layer.0": 1.5, "layer.1": 2.5}, tmp_path)
    assert load_ranges(tmp_path) == {"layer.0": 1.5, "layer.1": 2.5}
    (tmp_path / "input_ranges.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is damaged .* train the adapter again"):
        load_ranges(tmp_path)


def test_a_training_learns_ranges_that_a_deployment_takes(adapted, task):
    model = adapted()
    train(model, task, learn_ranges=True, **SMALL)
    first = adapted()
    train(first, task, learn_ranges=True, **(SMALL | {"epochs": 0.01}))
    deployment = deploy(model, "pcm-hermes-2").program(seed=0)
    assert model.input_ranges.keys() == deployment.layers.keys()
    # Every range has moved from where one step leaves it.
    assert all(model.input_ranges[name] != first.input_ranges[name] for name in deployment.layers)
    before = task.predict(deployment.model)
    deployment.set_input_ranges(model.input_ranges)
    assert hooks_of(deployment.model).input_ranges == model.input_ranges
    assert (task.predict(deployment.model) != before).any()


def test_a_resumed_training_learns_the_same_ranges(adapted, task, tmp_path):
    whole = adapted()
    settings = SMALL | {"epochs": 2, "learn_ranges": True}
    train(whole, task, output_dir=tmp_path, **settings)
    resumed = adapted()
    first = min(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    train(resumed, task, output_dir=tmp_path, resume_from_checkpoint=str(first), **settings)
    assert resumed.input_ranges == whole.input_ranges


def test_a_training_without_ranges_removes_those_of_an_earlier_one(adapted, task):
    model = adapted()
    train(model, task, max_steps=1, converters="pcm-hermes-2", learn_ranges=True)
    assert model.input_ranges
    train(model, task, max_steps=1)
    assert not hasattr(model, "input_ranges")


def test_ranges_require_converters(adapted, task):
    with pytest.raises(ValueError, match="learn_ranges requires converters"):
        train(adapted(), task, learn_ranges=True)


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        ({"0": -1.0}, "The input range of 0 is -1.0: it should be above 0"),
        ({"1": 1.0}, "those of 1, of which none is on tiles: the layers on tiles are 0"),
    ],
)
def test_wrong_ranges_are_rejected(ranges, sentence):
    deployment = deploy(nn.Sequential(nn.Linear(3, 2)), "pcm-hermes-2")
    with pytest.raises(ValueError, match=sentence):
        deployment.set_input_ranges(ranges)


def test_steps_are_taken_after_one_that_mixed_precision_skips(adapted, task, tmp_path):
    model = adapted()
    tokenizer = task.tokenizer_of(model)
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=3, optim="adamw_torch",
        save_strategy="no",
    )  # fmt: skip
    trainer = AdapterTrainer(
        model=model, args=args, train_dataset=task.training_rows(model, tokenizer),
        data_collator=task.collator(tokenizer), converters="pcm-hermes-2", learn_ranges=True,
    )  # fmt: skip
    # That of accelerate is for GPUs only. The first gradient overflows.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    factors, taken = iter([math.inf]), []
    trainer.ranges.log.register_hook(lambda gradient: gradient * next(factors, 1.0))
    trainer.create_optimizer().register_step_post_hook(lambda *_: taken.append(1))
    trainer.train()
    assert len(taken) == 2
