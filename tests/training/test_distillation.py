"""The second stage of training and age-scheduled adapters, on simulated chips of tiny models."""

import copy
import json
from functools import partial
from itertools import pairwise

import pytest
import torch
import transformers as hf
from peft import PeftModel, PromptTuningConfig, get_peft_model
from small_models import bits, same_bits, with_small_inputs
from torch import nn
from torch.distributions import Bernoulli, kl_divergence

from analog_grasp import AgeSchedule, DeviceCard, deploy, fit_schedule
from analog_grasp.adapters import config
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.adapters.registry import adapt
from analog_grasp.training import distil, train
from analog_grasp.training.distillation import (
    Teacher,
    _output_loss,
    backward_through_targets,
    descend,
)
from analog_grasp.training.examples import pick

KINDS = ("grasp", "stochgrasp", "lora", "ia3", "bitfit")
NOISY = "rram-cmo-falcone@1y"
# A quarter of the devices holds no weight, which an adapter can compensate on all chips alike.
STUCK = DeviceCard.load("ideal").with_(stuck_off=0.25)


@pytest.fixture
def trained(reader, task):
    """Return a function that trains an adapter on the tiny task."""

    def make(kind="grasp", **settings):
        torch.manual_seed(0)
        given = {"groups": 4, "target_modules": "all-linear", "noise_weight": 1.0}
        given |= {"noise_target": 0.1, "sampling": "feature"}
        model = adapt(reader("bert", dropout=False), kind, **given)
        train(model, task, epochs=6, batch_size=16, **{"learning_rate": 2e-2} | settings)
        return model

    return make


def logits(model, task):
    return torch.from_numpy(task.predict(model)).log_softmax(-1)


def distance(on_chip, digital, task):
    found = logits(on_chip, task)
    return nn.functional.kl_div(found, digital, log_target=True, reduction="batchmean").item()


def distances(model, digital, task):
    """Return the divergence from digital outputs on chips that no training has seen."""
    deployment = deploy(model, STUCK)
    return sum(distance(deployment.program(chip).model, digital, task) for chip in range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_stage_brings_other_chips_closer_to_the_digital_model(trained, task, kind):
    model = trained(kind)
    digital, before = logits(model, task), distances(model, logits(model, task), task)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    distil(model, task, STUCK.at("0s"), steps=60, learning_rate=5e-3)
    assert distances(model, digital, task) < 0.95 * before
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())


def test_a_second_stage_does_not_depend_on_the_size_of_the_inputs_of_a_layer(reader, task):
    found = []
    for size in (1.0, 1 / 64):
        torch.manual_seed(0)
        base = with_small_inputs(reader("bert", dropout=False), size)
        model = adapt(base, "grasp", groups=4, target_modules="all-linear")
        before = logits(model, task)
        distil(model, task, STUCK.at("0s"), steps=30, learning_rate=2e-2)
        found.append(distances(model, before, task))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_second_stage_of_train_is_distil(trained, task):
    ages = "pcm-hermes-2@0s..1y,rram-wan2022@1h"
    apart = trained()
    distil(apart, task, ages, steps=7)
    assert same_bits(bits(trained(then=ages, then_steps=7)), bits(apart))
    assert not same_bits(bits(trained()), bits(apart))


def test_the_second_stage_has_the_learning_rates_of_the_first(trained, task):
    given = {"learning_rate": 5e-3, "shift_lr_ratio": 0.2}
    apart, other = trained(**given), trained(**given)
    distil(apart, task, NOISY, steps=3, **given)
    distil(other, task, NOISY, steps=3, learning_rate=5e-3)
    assert same_bits(bits(trained(then=NOISY, then_steps=3, **given)), bits(apart))
    assert not same_bits(bits(other), bits(apart))


def test_sigmas_of_stochgrasp_stay_as_learned(trained, task):
    model = trained("stochgrasp")
    layers = [m for m in model.modules() if isinstance(m, StochGraspLinear)]
    before = [[s.detach().clone() for s in layer.relative_sigmas("default")] for layer in layers]
    distil(model, task, NOISY, steps=3)
    for layer, sigmas in zip(layers, before, strict=True):
        assert all(map(torch.equal, layer.relative_sigmas("default"), sigmas))


def test_an_ideal_chip_leaves_the_outputs_as_they_are(trained, task):
    model = trained()
    digital = logits(model, task)
    distil(
        model, task, "ideal@0s", steps=20, learning_rate=1e-3,
        put_on_chip=lambda model, card, **_: deploy(model, card),
    )  # fmt: skip
    assert distance(model, digital, task) < 1e-5


def test_another_seed_sees_other_chips(trained, task):
    model = trained()
    found = []
    for seed in (0, 0, 1):
        copied = copy.deepcopy(model)
        distil(copied, task, NOISY, steps=4, seed=seed)
        found.append(bits(copied))
    assert same_bits(found[0], found[1])
    assert not same_bits(found[0], found[2])


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        ("pcm-hermes-2@1y..0s", "reversed range"),
        ("", "names no device"),
        ("pcm-hermes-2", "has no drift time"),
        ("hermes@0s..1y", "Unknown device 'hermes'"),
    ],
)
def test_invalid_ages_are_rejected_before_training(reader, task, then, sentence):
    model = adapt(reader(), "head")
    before = bits(model)
    with pytest.raises(ValueError, match=sentence):
        train(model, task, then=then)
    assert same_bits(bits(model), before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0: a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size is -1: a whole number of at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0: a finite number above 0"),
    ],
)
def test_numbers_out_of_range_raise_one_sentence(reader, task, settings, sentence):
    model = adapt(reader("bert"), "grasp", groups=4, target_modules="all-linear")
    with pytest.raises(ValueError, match=sentence):
        distil(model, task, NOISY, **settings)


def test_a_fit_that_diverges_raises_one_sentence(trained, task):
    model = trained()
    before = bits(model)
    with pytest.raises(
        ValueError, match=r"diverged: after 3 steps at a learning rate of 1e\+38 a pa"
    ):
        distil(model, task, NOISY, steps=3, learning_rate=1e38)
    assert same_bits(bits(model), before)
    deployment = drifting_chip(model)
    with pytest.raises(ValueError, match=r"diverged: .* a lower learning rate is required\.$"):
        fit_schedule(deployment, task, ["1d"], steps=3, learning_rate=1e38)


def test_a_model_that_is_trained_whole_has_no_second_stage(reader, task):
    with pytest.raises(ValueError, match="BertForSequenceClassification, has no adapter to distil"):
        train(adapt(reader(), "full"), task, then=NOISY)


def drifting_chip(model):
    return deploy(model, "pcm-hermes-2").program(5).drift_to("1h")


def test_each_age_has_an_adapter_fitted_on_other_chips(trained, task):
    model = trained()
    deployment = deploy(model, STUCK).program(2)
    digital, chip = logits(model, task), bits(deployment.model)
    outputs = logits(deployment.model, task)
    schedule = fit_schedule(deployment, task, ["0s"], steps=60, learning_rate=5e-3, groups=4)
    assert same_bits(bits(deployment.model), chip)
    assert torch.equal(logits(deployment.program(2).model, task), outputs)

    def total():
        aged = (deployment.program(chip).drift_to("0s").model for chip in range(4))
        return sum(distance(model, digital, task) for model in aged)

    before = total()
    schedule.follow(deployment)
    assert total() < 0.95 * before
    cost = schedule.costs[0.0]
    assert cost.steps == 60
    assert cost.parameters == sum(p.numel() for p in chip.values())
    assert cost.bytes == 4 * cost.parameters


def test_drift_switches_to_the_adapter_of_the_nearest_age(trained, task, tmp_path):
    deployment = drifting_chip(trained())
    times = ["0s", "1d", "1y"]
    schedule = fit_schedule(deployment, task, times, steps=3)
    assert (deployment.seed, deployment.time_s) == (5, 3600.0)
    alone = fit_schedule(deployment, task, ["1d"], steps=3)
    assert same_bits(alone.adapters[86400.0], schedule.adapters[86400.0])
    schedule.save(tmp_path / "ages")
    index = json.loads((tmp_path / "ages" / "schedule.json").read_text())
    assert (index["device"], list(index["ages"])) == ("pcm-hermes-2", times)
    assert index["settings"] == {"steps": 3, "learning_rate": 0.01, "batch_size": 32, "seed": 0}
    loaded = AgeSchedule.load(tmp_path / "ages")
    assert loaded.settings == index["settings"]
    loaded.follow(deployment)
    seen = {}
    for time in ("0s", "2h", "7d", "10y"):
        seen[time] = bits(deployment.drift_to(time).model)
    assert not same_bits(seen["0s"], seen["2h"])
    assert same_bits(seen["2h"], seen["7d"])
    assert not same_bits(seen["7d"], seen["10y"])
    assert same_bits(bits(deployment.program(6).model), seen["0s"])


def test_a_schedule_replaces_an_earlier_one_and_no_other_function(trained, task):
    deployment, ages = drifting_chip(trained()), []
    deployment.on_drift.append(ages.append)
    schedule = fit_schedule(deployment, task, ["1d"], steps=1)
    for _ in range(2):
        schedule.follow(deployment)
    assert len(deployment.on_drift) == 2
    deployment.drift_to("1d")
    assert ages == [86400.0]


def test_a_deployment_is_as_before_after_a_schedule_or_an_error(trained, task):
    deployment = deploy(trained(), "pcm-hermes-2")
    fresh = bits(deployment.model)
    fit_schedule(deployment, task, ["1y"], steps=1)
    assert (deployment.seed, deployment.time_s) == (None, 0.0)
    assert same_bits(bits(deployment.model), fresh)
    deployment.program(5).drift_to("1h").on_drift = [print]

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_schedule(deployment, task, ["1y"], steps=2, advance=stop)
    assert (deployment.seed, deployment.time_s, deployment.on_drift) == (5, 3600.0, [print])


@pytest.mark.parametrize("steps", [1, 2, 8, 9, 10, 20])
def test_any_number_of_steps_warms_up_and_decays(steps):
    parameter, rates = nn.Parameter(torch.zeros(1)), []
    for _ in descend(lambda _: parameter.sum(), [parameter], steps, 0.1):
        rates.append(float(parameter))
    moves = [before - after for before, after in pairwise([0.0, *rates])]
    # Adam moves by the learning rate under a constant gradient.
    assert all(0 < move <= 0.1 + 1e-6 for move in moves)
    assert moves[0] < max(moves) or steps == 1


def fused_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).requires_grad_(False)


def test_fused_weights_on_tiles_have_the_gradient_of_their_targets():
    model, x = fused_attention(), torch.randn(2, 3, 16)
    x.requires_grad_(True)
    (expected,) = torch.autograd.grad(model.train()(x).square().sum(), x)
    deployment = deploy(model, "ideal").program(0)
    with backward_through_targets([deployment]), torch.enable_grad():
        (found,) = torch.autograd.grad(deployment.model.train()(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_labels_that_do_not_exclude_each_other_are_distilled_one_by_one():
    target, tokens = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.ones(2, 3, dtype=torch.bool)
    same = _output_loss(target, target, tokens, several=True)
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    # An offset of all logits changes each label, but no class.
    assert _output_loss(target + 5, target, tokens, several=True) > 1.0
    assert _output_loss(target + 5, target, tokens, several=False) < 1e-5
    one = torch.tensor([[2.0], [0.5]])
    pair = (Bernoulli(logits=logits) for logits in (one, one + 5))
    expected = kl_divergence(*pair).mean().item()
    assert _output_loss(one + 5, one, tokens, several=True).item() == pytest.approx(expected)


class Wrapper(nn.Module):
    """A wrapper without the configuration of its model, as that of a distributed training."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def test_the_problem_type_of_a_wrapped_student_is_known(reader, batch):
    student, teacher = reader(), Teacher(reader(), 0.0)
    student.config.problem_type = "multi_label_classification"
    student.classifier.bias.data += 1.0
    assert torch.equal(teacher.loss(Wrapper(student), batch), teacher.loss(student, batch))


def test_targets_of_a_prompt_are_those_of_the_tokens(reader, batch):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = get_peft_model(reader(), config).eval()
    batch["attention_mask"][0, 5:] = 0
    teacher = Teacher(model, 3.0)
    short = pick(teacher.prepared(batch), torch.tensor([0]))
    assert teacher.loss(model, short).item() == pytest.approx(0.0, abs=1e-4)


SMALL = {"vocab_size": 50, "d_model": 16, "decoder_start_token_id": 1}
BOTH = {
    "t5": lambda: hf.T5ForSequenceClassification(
        hf.T5Config(**SMALL, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    ),
    "bart": lambda: hf.BartForSequenceClassification(
        hf.BartConfig(
            **SMALL, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, eos_token_id=2,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_encoders_with_decoders_are_distilled(make, batch):
    torch.manual_seed(0)
    model, other = make().eval(), make().eval()
    # T5 reads 1 as the end of a text, and BART 2.
    batch["input_ids"][:, -2:] = torch.tensor([2, 1])
    teacher = Teacher(model, 3.0)
    assert teacher.loss(model, batch).item() == pytest.approx(0.0, abs=1e-6)
    alone = Teacher(model, 0.0).loss(other, batch)
    assert teacher.loss(other, batch) > alone + 1.0


def test_a_forward_of_the_layer_itself_is_restored(trained):
    deployment = drifting_chip(trained())
    layer = next(iter(deployment.layers.values()))
    layer.forward = own = partial(type(layer).forward, layer)
    with backward_through_targets([deployment]):
        assert layer.forward is not own
    assert layer.forward is own


def test_a_single_step_of_a_single_example_is_done(trained, task):
    model = trained()
    before = bits(model)
    distil(model, task, NOISY, steps=1, batch_size=1)
    assert not same_bits(bits(model), before)


@pytest.mark.parametrize("kind", ["grasp", "lora"])
def test_the_adapter_of_an_age_is_a_peft_folder(trained, task, reader, tmp_path, kind):
    deployment = drifting_chip(trained(kind))
    fit_schedule(deployment, task, ["30d"], steps=3).save(tmp_path / "ages")
    loaded = PeftModel.from_pretrained(reader("bert", dropout=False), tmp_path / "ages" / "30d")
    AgeSchedule.load(tmp_path / "ages").follow(deployment)
    assert same_bits(bits(loaded), bits(deployment.model))


def test_ages_are_added_to_a_schedule_of_the_same_adapter(trained, task):
    deployment = drifting_chip(trained())
    own = fit_schedule(deployment, task, ["1d"], steps=1, groups=4)
    with pytest.raises(ValueError, match=r"known schedule is .* other parameters or groups: fit"):
        fit_schedule(deployment, task, ["1y"], steps=1, known=own)
    more = fit_schedule(deployment, task, ["1y"], steps=1, groups=4, known=own)
    assert set(more.adapters) == {86400.0, 31536000.0}
    assert same_bits(more.adapters[86400.0], own.adapters[86400.0])


def test_the_adapter_of_an_age_has_a_group_per_feature_by_default(trained, task):
    deployment = drifting_chip(trained())
    schedule = fit_schedule(deployment, task, ["1d"], steps=1)
    assert schedule.config.groups == 32
    schedule.follow(deployment)
    assert deployment.model.active_peft_config.groups == 32


@pytest.mark.parametrize("stated", [True, False])
def test_the_adapter_of_an_age_can_have_more_groups(
    trained, task, reader, tmp_path, monkeypatch, stated
):
    model = trained()
    if not stated:
        monkeypatch.setattr(config, "DEFAULT_GROUPS", 4)
        model.active_peft_config.groups = None
    deployment = drifting_chip(model)
    before = bits(deployment.model)
    fit_schedule(deployment, task, ["30d"], steps=3, groups=16).save(tmp_path / "ages")
    assert same_bits(bits(deployment.model), before)
    folder = tmp_path / "ages" / "30d"
    loaded = PeftModel.from_pretrained(reader("bert", dropout=False), folder)
    assert loaded.active_peft_config.groups == 16
    AgeSchedule.load(tmp_path / "ages").follow(deployment)
    assert same_bits(bits(loaded), bits(deployment.drift_to("7d").model))
    # A second schedule is taught by the adapter as trained, with its groups.
    again = fit_schedule(deployment, task, ["30d"], steps=3, groups=16)
    again.follow(deployment)
    assert same_bits(bits(deployment.model), bits(loaded))


def test_invalid_schedules_raise_one_sentence(trained, task, reader, tmp_path):
    deployment = drifting_chip(trained())
    with pytest.raises(ValueError, match=r"times is \[\]: a list of at least one age"):
        fit_schedule(deployment, task, [])
    with pytest.raises(ValueError, match="times is '1y': a list of at least one age"):
        fit_schedule(deployment, task, "1y")
    for wrong, sentence in (
        ({"steps": 0}, "steps is 0: a whole"),
        ({"batch_size": 0}, "batch_size is 0: a whole"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0: a finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit_schedule(deployment, task, ["1d"], **wrong)
    with pytest.raises(ValueError, match="The schedule has no adapter"):
        AgeSchedule("pcm-hermes-2", None).follow(deployment)
    with pytest.raises(ValueError, match="The adapter is folded"):
        fit_schedule(deploy(trained(), "ideal", placement="folded"), task, ["1d"])
    schedule = fit_schedule(deployment, task, ["1d"], steps=1)
    other = deploy(adapt(reader(), "head"), DeviceCard.load("pcm-hermes-2")).program(0)
    with pytest.raises(ValueError, match="fit one for this adapter"):
        schedule.follow(other)
    with pytest.raises(ValueError, match="is of pcm-hermes-2 and the deployment on ideal"):
        schedule.follow(deploy(adapt(reader(), "head"), "ideal"))
    with pytest.raises(FileNotFoundError, match="holds no schedule"):
        AgeSchedule.load(tmp_path)
    schedule.save(tmp_path)
    (tmp_path / "1d" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        AgeSchedule.load(tmp_path)
