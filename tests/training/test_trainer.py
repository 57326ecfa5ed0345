"""Training of tiny models: learned parameters, frozen weights, resuming."""

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from small_models import same_bits
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainingArguments

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import trained_adapters
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.training import AdapterTrainer, NoiseAwareLoss, train


class Raises(TrainerCallback):
    """A callback that raises after the second step."""

    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            raise self.error


def frozen_bits(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def adapter_bits(model):
    if not isinstance(model, PeftModel):
        return model.state_dict()
    active = model.active_adapter
    return get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)


def sigmas(model):
    layers = [m for m in model.modules() if isinstance(m, StochGraspLinear)]
    return torch.cat([sigma for layer in layers for sigma in layer.relative_sigmas("default")])


@pytest.mark.parametrize("adapter", ["grasp", "stochgrasp"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_training_lowers_the_loss_and_keeps_frozen_weights(adapted, task, adapter, architecture):
    model = adapted(adapter, architecture)
    labels = torch.from_numpy(task.labels("train"))

    def loss():
        return cross_entropy(torch.from_numpy(task.predict(model, "train")), labels).item()

    before, frozen = loss(), frozen_bits(model)
    train(model, task, injection=0.04, epochs=6, batch_size=16, learning_rate=2e-2)
    assert loss() < 0.9 * before
    assert same_bits(frozen_bits(model), frozen)
    assert not model.training


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["callback", "forward"])
def test_interrupted_training_keeps_frozen_weights(adapted, task, error, where):
    model = adapted("stochgrasp")
    frozen, callbacks = frozen_bits(model), [Raises(error("stop"))]
    if where == "forward":
        callbacks, passes = [], iter(range(2))

        def fail_at_the_third(*_):
            if next(passes, None) is None:
                raise error("stop")

        model.base_model.model.classifier.register_forward_hook(fail_at_the_third)
    with pytest.raises(error, match="stop"):
        train(model, task, injection=0.1, batch_size=8, callbacks=callbacks)
    assert same_bits(frozen_bits(model), frozen)
    assert not model.training


@pytest.mark.parametrize("adapter", ["grasp", "stochgrasp"])
def test_same_seed_gives_the_same_bits(adapted, task, adapter):
    def trained(seed):
        model = adapted(adapter)
        torch.manual_seed(99 + seed)  # the caller's random state has no effect
        torch.rand(seed + 1)
        train(model, task, injection=0.05, epochs=1, batch_size=16, seed=seed)
        return adapter_bits(model)

    first, again, other = trained(0), trained(0), trained(1)
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize("adapter", ["grasp", "stochgrasp"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_shifts_have_their_own_learning_rate(adapted, task, adapter, ratio):
    model = adapted(adapter)
    # A shift of all keys alike has no effect on the attention, and no gradient.
    layers = [
        layer
        for name, layer in model.named_modules()
        if hasattr(layer, "means") and not name.endswith("key")
    ]
    inputs = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: inputs.update({layer: given[0]}))
        for layer in layers
    ]
    task.predict(model, "train")  # one batch
    for hook in hooks:
        hook.remove()
    fixed = {"warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 1}
    train(model, task, learning_rate=1e-2, shift_lr_ratio=ratio, **fixed)
    # Adam's first step is the learning rate, for any gradient.
    sizes = {layer: value.square().mean().sqrt().item() for layer, value in inputs.items()}
    assert max(sizes.values()) > 2 * min(sizes.values())
    for layer in layers:
        scales, shifts = layer.means("default")
        assert (scales.detach() - 1).abs().median() == pytest.approx(1e-2, rel=1e-2)
        assert shifts.detach().abs().median() == pytest.approx(
            ratio * sizes[layer] * 1e-2, rel=0.05
        )


def test_a_layer_without_inputs_on_the_first_rows_is_trained(adapted, task, monkeypatch):
    def run(_, model):
        for layer in model.modules():
            if isinstance(layer, GraspLinear):
                layer(torch.zeros(0, layer.in_features))

    monkeypatch.setattr(AdapterTrainer, "_run_first_rows", run)
    model = adapted()
    fixed = {"warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 1}
    train(model, task, learning_rate=1e-2, shift_lr_ratio=0.5, **fixed)
    shifts = [m.means("default")[1] for m in model.modules() if isinstance(m, GraspLinear)]
    moved = torch.cat(shifts).detach().abs()
    # Adam's first step is the learning rate; inputs count as of size 1.
    assert moved.median() == pytest.approx(0.5e-2, rel=1e-2)
    assert moved.isfinite().all()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_standard_deviations_have_their_own_learning_rate(adapted, task, ratio):
    model = adapted("stochgrasp", noise_weight=1.0)
    fixed = {"warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 1}
    train(model, task, learning_rate=1e-2, sigma_lr_ratio=ratio, **fixed)
    # Adam's first step is the learning rate, for any gradient.
    steps = (sigmas(model) / 0.05).log().abs()
    torch.testing.assert_close(steps, torch.full_like(steps, ratio * 1e-2), rtol=1e-2, atol=0)


def test_the_noise_aware_loss_gets_the_progress_of_the_steps(adapted, task, monkeypatch):
    seen = []
    loss = NoiseAwareLoss.__call__

    def recorded(self, progress):
        seen.append(progress)
        return loss(self, progress)

    monkeypatch.setattr(NoiseAwareLoss, "__call__", recorded)
    model, settings = adapted("stochgrasp"), {"gradient_accumulation_steps": 2, "epochs": 2}
    train(model, task, batch_size=16, **settings)
    assert seen == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("name", ["noise_weight_schedule", "noise_target_schedule"])
def test_a_linear_schedule_changes_the_training(adapted, task, name):
    def trained(**settings):
        model = adapted("stochgrasp", noise_weight=1.0)
        train(model, task, epochs=1, batch_size=16, **settings)
        return adapter_bits(model)

    assert not same_bits(trained(**{name: "linear"}), trained())


def test_injection_and_second_stage_take_cards_at_a_time(adapted, task):
    def trained(where):
        model = adapted()
        train(model, task, injection=where, then=where, then_steps=2, epochs=1, batch_size=16)
        return adapter_bits(model)

    named, card = trained("pcm-hermes-2@1d"), DeviceCard.load("pcm-hermes-2")
    assert same_bits(trained(card.at("1d")), named)
    assert same_bits(trained([card.at("1d")]), named)


ON_TILES = {
    "injection": {"injection": 0.1},
    "converters": {"converters": "pcm-hermes-2"},
    "then": {"then": "gaussian:0.1@0s", "then_steps": 2},
}


@pytest.mark.parametrize("settings", ON_TILES.values(), ids=ON_TILES)
def test_layers_are_those_on_tiles(adapted, task, settings):
    def trained(**more):
        model = adapted(dropout=False)
        train(model, task, epochs=1, batch_size=16, **more)
        return adapter_bits(model)

    exact, whole = trained(), trained(**settings)
    assert same_bits(trained(**settings, layers="all-linear"), whole)
    assert not same_bits(trained(**settings, layers=["query"]), whole)
    assert not same_bits(trained(**settings, layers=["query"]), exact)
    if "then" not in settings:
        assert same_bits(trained(**settings, layers=()), exact)
    with pytest.raises(ValueError, match="'nothing' matches no frozen linear layer"):
        trained(**settings, layers="nothing")


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, "all-linear"),
        ({"layers": ["all-linear", "lm_head"]}, ("all-linear", "lm_head")),
        ({"placement": "programmed", "weights": "digital"}, None),
    ],
)
def test_a_study_trains_with_its_layers_on_tiles(adapted, task, settings, layers, monkeypatch):
    given = {}
    monkeypatch.setattr(trained_adapters, "train", lambda *_, **arguments: given.update(arguments))
    stochastic = {"sigma_lr_ratio": 3.0, "noise_weight_schedule": "linear"}
    stochastic |= {"noise_target_schedule": "linear"}
    config = resolve({"then": "none"} | settings | stochastic)
    trained_adapters.train_adapter(adapted("stochgrasp"), config, task, "", silent)
    assert given.get("layers") == layers
    assert all(given[name] == value for name, value in stochastic.items())
    given.clear()
    trained_adapters.train_adapter(adapted(), config, task, "", silent)
    assert "shift_lr_ratio" in given
    assert not stochastic.keys() & given.keys()


@pytest.mark.parametrize("form", ["l2", "kl"])
def test_noise_aware_loss_moves_sigmas_to_the_target(adapted, task, form):
    model = adapted("stochgrasp", noise_weight=100.0, noise_target=0.1, noise_loss=form)
    assert sigmas(model).allclose(torch.tensor(0.05))
    train(model, task, epochs=5, batch_size=8, learning_rate=5e-2)
    torch.testing.assert_close(sigmas(model), torch.full_like(sigmas(model), 0.1), rtol=0.1, atol=0)


def test_target_has_no_effect_at_zero_weight(adapted, task):
    def trained(target):
        model = adapted("stochgrasp", noise_weight=0.0, noise_target=target)
        train(model, task, epochs=1, batch_size=16)
        return adapter_bits(model)

    assert same_bits(trained(0.1), trained(10.0))


def test_accumulated_small_batches_equal_one_large_batch(adapted, task):
    def trained(batch_size, steps):
        model = adapted(dropout=False)
        train(
            model,
            task,
            epochs=4,
            batch_size=batch_size,
            gradient_accumulation_steps=steps,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
        )
        return adapter_bits(model)

    start, large, small = adapter_bits(adapted(dropout=False)), trained(32, 1), trained(8, 4)
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, atol=1e-5, rtol=1e-4)
    assert max((large[name] - start[name]).abs().max() for name in large) > 1e-2


class Scales(TrainerCallback):
    """A callback that records the loss scale of StochGRASP's layers after each step."""

    def on_step_end(self, args, state, control, model, **_):
        self.found = scales(model)


def scales(model):
    return {float(m.loss_scale) for m in model.modules() if isinstance(m, StochGraspLinear)}


@pytest.mark.parametrize("noise_weight", [0.0, 1.0])
def test_stochgrasp_knows_the_scale_of_an_accumulated_loss(adapted, task, noise_weight):
    model, seen = adapted("stochgrasp", noise_weight=noise_weight), Scales()
    settings = {"batch_size": 8, "gradient_accumulation_steps": 4, "callbacks": [seen]}
    train(model, task, epochs=1, **settings)
    assert seen.found == {0.25}
    assert scales(model) == {1.0}


class Examples(TrainerCallback):
    """A callback that records the number of examples of which StochGRASP's layers draw samples."""

    def __init__(self, model):
        self.layers = [m for m in model.modules() if isinstance(m, StochGraspLinear)]
        self.found = []
        self.layers[0].register_forward_pre_hook(self.record)

    def record(self, layer, _):
        self.found.append(layer.examples)

    def on_step_end(self, *_, **__):
        self.record(self.layers[-1], None)


def test_stochgrasp_knows_the_number_of_examples_within_a_step(adapted, task):
    model = adapted("stochgrasp")
    seen = Examples(model)
    train(model, task, max_steps=2, batch_size=8, callbacks=[seen])
    assert seen.found[-4:] == [8, None, 8, None]


def test_the_gradient_of_a_standard_deviation_counts_examples():
    # Seven tokens of two examples, such as those that are routed to one expert.
    x, found = torch.randn(7, 6), []
    for examples in (None, 2):
        torch.manual_seed(0)
        layer = StochGraspLinear(nn.Linear(6, 4), "default", StochGraspConfig(groups=2))
        layer.examples = examples
        layer(x).square().sum().backward()
        found.append(layer.stochgrasp_scale_log_sigma["default"].grad)
    torch.testing.assert_close(found[1], 2 / 7 * found[0])


def test_a_compiled_layer_has_the_scale_of_each_loss():
    layer = StochGraspLinear(nn.Linear(6, 4), "default", StochGraspConfig(groups=2))
    x = torch.randn(8, 3, 6)
    for scale in (1.0, 0.25):
        found = []
        for run in (layer, torch.compile(layer, backend="aot_eager")):
            torch.manual_seed(0)
            layer.zero_grad()
            loss = scale * run(x).square().mean()
            layer.loss_scale = scale
            loss.backward()
            found.append(layer.stochgrasp_scale_log_sigma["default"].grad)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("adapter", ["grasp", "stochgrasp"])
def test_weight_decay_has_no_effect_on_scales_shifts_and_standard_deviations(
    adapted, task, adapter
):
    def trained(**more):
        model = adapted(adapter)
        train(model, task, max_steps=1, warmup_steps=0, **more)
        return adapter_bits(model)

    exact, decayed = trained(), trained(weight_decay=0.5)
    changed = {name for name in exact if not torch.equal(exact[name], decayed[name])}
    assert changed == {"base_model.model.classifier.weight"}


@pytest.mark.parametrize(
    "setting", [{"learn_ranges": True}, {"shift_lr_ratio": 0.5}, {"sigma_lr_ratio": 2.0}]
)
def test_settings_of_the_optimizer_and_an_optimizer_raise(adapted, task, setting, tmp_path):
    model = adapted("stochgrasp")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    given = {"converters": "pcm-hermes-2", "optimizers": (optimizer, None)}
    AdapterTrainer(model=model, args=args, **given)
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*, which has no effect on an"):
        AdapterTrainer(model=model, args=args, **given, **setting)


def test_model_without_trainable_parameters_raises(adapted, task):
    model = adapted().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        train(model, task)


def test_files_are_written_to_output_dir_only(adapted, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(adapted(), task, epochs=1)
    assert not list(tmp_path.iterdir())
    train(adapted(), task, epochs=1, output_dir=tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").glob("checkpoint-*/adapter_model.safetensors"))


def test_save_steps_write_checkpoints(adapted, task, tmp_path):
    train(adapted(), task, epochs=1, batch_size=16, output_dir=tmp_path, save_steps=2)
    folders = {file.parent.name for file in tmp_path.glob("*/adapter_model.safetensors")}
    assert folders == {"checkpoint-2", "checkpoint-4"}
    assert not list(tmp_path.glob("*/training_args.bin"))


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_training_ends_with_the_same_bits(adapted, task, tmp_path, stop):
    """Training is interrupted within the first and within the second epoch of four steps."""

    class Stops(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == stop:
                raise KeyboardInterrupt

    def trained(**more):
        model = adapted("stochgrasp")
        settings = {"injection": 0.1, "converters": "pcm-hermes-2", "epochs": 3, "batch_size": 16}
        settings |= {"noise_weight_schedule": "linear", "noise_target_schedule": "linear"}
        train(model, task, **settings, **more)
        return adapter_bits(model)

    kept = {"output_dir": tmp_path, "save_steps": 3}
    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(**kept, callbacks=[Stops()])
    assert same_bits(trained(**kept, resume_from_checkpoint=True), whole)


def test_bf16_training_is_close_and_leaves_no_wrapper(adapted, task, batch):
    def trained(**more):
        model = adapted(dropout=False)
        # SGD: gradients are close, while Adam's steps depend on their signs.
        settings = {"epochs": 4, "batch_size": 16, "optim": "sgd", "learning_rate": 0.1}
        train(model, task, **settings, **more)
        return model

    def numbers(model):
        return torch.cat([value.flatten() for value in adapter_bits(model).values()])

    start, exact, mixed = adapted(dropout=False), trained(), trained(bf16=True)
    error = (numbers(mixed) - numbers(exact)).norm() / (numbers(exact) - numbers(start)).norm()
    assert 0 < error < 0.05
    mixed.load_state_dict(exact.state_dict())
    assert torch.equal(mixed(**batch).logits, exact(**batch).logits)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("evaluate_on", "pcm-hermes-2"), ("converters", "ideal"), ("injection", "pcm-hermes-2")],
)
def test_incomplete_devices_raise(adapted, task, setting, value):
    with pytest.raises(ValueError, match=f"'{value}'"):
        train(adapted(), task, **{setting: value})
