"""Adapters loaded into other models: compiled, renamed, partial, of other widths, damaged."""

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from small_models import WIDTH, Mlp, build, close, move
from torch import nn

from analog_grasp.adapters.layer import GraspLinear


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def resize(file):
    save_file({key: value[..., :-1].clone() for key, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "damage", [truncate, resize, lambda file: file.unlink(), lambda file: file.write_bytes(b"")]
)
def test_a_failed_load_leaves_no_trace(make_config, damage, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}
    adapted = get_peft_model(build(Mlp), make_config(**settings))
    adapted.save_pretrained(tmp_path)
    damage(tmp_path / "adapter_model.safetensors")
    trainable = {name: p.requires_grad for name, p in adapted.named_parameters()}
    modules = [name for name, _ in adapted.named_modules()]
    # Whatever safetensors, torch or the Hub's client raise.
    with pytest.raises(Exception):  # noqa: B017, PT011
        adapted.load_adapter(tmp_path, "other")
    assert list(adapted.peft_config) == ["default"]
    assert [name for name, _ in adapted.named_modules()] == modules
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == trainable
    with pytest.raises(Exception):  # noqa: B017, PT011
        adapted.load_adapter(tmp_path, "default")
    assert [name for name, _ in adapted.named_modules()] == modules
    base = build(Mlp)
    with pytest.raises(Exception):  # noqa: B017, PT011
        PeftModel.from_pretrained(base, tmp_path)
    assert [name for name, _ in base.named_modules()] == [n for n, _ in Mlp().named_modules()]


@pytest.mark.parametrize("compiled", [(True, False), (False, True), (True, True)])
def test_compiled_base_models_save_and_load(make_config, x, compiled, tmp_path):
    base, other = (
        torch.compile(build(Mlp), backend="eager") if on else build(Mlp) for on in compiled
    )
    adapted = move(get_peft_model(base, make_config(target_modules=["lin0", "lin1"])))
    adapted.save_pretrained(tmp_path)
    close(PeftModel.from_pretrained(other, tmp_path)(x), adapted(x))


def test_renamed_modules_load_with_a_key_mapping(make_config, x, tmp_path):
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Mlp()

        def forward(self, x):
            return self.body(x)

    adapted = move(get_peft_model(build(Mlp), make_config(target_modules=["lin0", "lin1"])))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(Renamed), tmp_path, key_mapping={"^lin": "body.lin"})
    close(loaded(x), adapted(x))


def test_a_partial_state_dict_is_injected_and_loaded(make_config, x):
    config = make_config(target_modules=["lin0", "lin1"])
    whole = move(get_peft_model(build(Mlp), config))
    state = {k: v for k, v in get_peft_model_state_dict(whole).items() if "lin0" in k}
    bare = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    saved = whole.peft_config["default"]
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        model = inject_adapter_in_model(saved, build(Mlp), state_dict=bare)
    set_peft_model_state_dict(model, bare)
    assert isinstance(model.lin0, GraspLinear)
    assert not isinstance(model.lin1, GraspLinear)
    close(model.lin0(x), whole.base_model.model.lin0(x))


def test_one_configuration_serves_two_models(make_config, x, tmp_path):
    class Wide(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.lin0 = nn.Linear(WIDTH, 30)
            self.lin1 = nn.Linear(30, 4)

    config = make_config(target_modules=["lin1"])
    first = get_peft_model(build(Mlp), config)
    first.save_pretrained(tmp_path / "first")
    assert first.peft_config["default"] is config
    assert config.in_features is None
    second = move(get_peft_model(build(Wide), config))
    second.save_pretrained(tmp_path / "second")
    for given in (None, config):
        loaded = PeftModel.from_pretrained(build(Wide), tmp_path / "second", config=given)
        close(loaded(x), second(x), 0)
    assert loaded.peft_config["default"] is config
    with pytest.raises(ValueError, match="lin1 has 30 features, and here 20"):
        PeftModel.from_pretrained(build(Mlp), tmp_path / "second")
