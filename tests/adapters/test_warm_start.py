"""Training that starts from a saved adapter."""

import pytest
import torch
from peft import get_peft_model

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.model import start_from
from analog_grasp.adapters.registry import adapt


@pytest.fixture
def adapted(make_model):
    """Return a function that builds a tiny classifier with an adapter."""

    def make(config=GraspConfig, name="mine/bert", head=0.0, **settings):
        model = make_model("bert")
        model.config._name_or_path = model.name_or_path = name
        model.classifier.weight.data += head
        return get_peft_model(model, config(**{"task_type": "SEQ_CLS", "groups": 4} | settings))

    return make


@pytest.fixture
def saved(adapted, tmp_path):
    """Return the folder of a GRASP adapter with drawn parameters, and the adapter."""
    model = adapted(head=1.0)
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, GraspLinear):
            for mean in layer.means("default"):
                mean.data = torch.rand(mean.shape, generator=generator)
    model.save_pretrained(str(tmp_path / "grasp"), save_embedding_layers=False)
    return tmp_path / "grasp", model


def means(model):
    layers = [m for m in model.modules() if isinstance(m, GraspLinear)]
    return torch.stack([torch.stack(layer.means("default")) for layer in layers])


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_means_and_head_are_those_of_the_saved_adapter(adapted, saved, batch, config):
    folder, first = saved
    model = adapted(config, name="other/place/bert")
    start_from(model, folder)
    assert torch.equal(means(model), means(first))
    with torch.no_grad():
        expected, found = first.eval()(**batch).logits, model.eval()(**batch).logits
    assert torch.equal(found, expected)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in adapted(config).named_parameters() if p.requires_grad}


def test_standard_deviations_stay_at_their_start(adapted, saved):
    model = adapted(StochGraspConfig, init_sigma=0.03)
    start_from(model, saved[0])
    for layer in model.modules():
        if isinstance(layer, StochGraspLinear):
            for sigma in layer.relative_sigmas("default"):
                torch.testing.assert_close(sigma, torch.full((4,), 0.03))


def test_stochgrasp_starts_from_stochgrasp_with_its_deviations(adapted, tmp_path):
    first = adapted(StochGraspConfig, init_sigma=0.2)
    first.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = adapted(StochGraspConfig)
    start_from(model, tmp_path)
    layer = next(m for m in model.modules() if isinstance(m, StochGraspLinear))
    torch.testing.assert_close(layer.relative_sigmas("default")[0], torch.full((4,), 0.2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "has model bert and cannot start one with other: give one with"),
        ({"groups": 8}, "has groups 4 and cannot start one with 8"),
        ({"grouping": "strided"}, "has grouping contiguous and cannot start"),
        ({"target_modules": ["query"]}, "method, layers, groups and task must be the same"),
    ],
)
def test_an_adapter_that_does_not_fit_raises_one_sentence(adapted, saved, changes, message):
    with pytest.raises(ValueError, match=message):
        start_from(adapted(**changes), saved[0])


def test_an_adapter_of_another_method_raises_one_sentence(adapted, saved, make_model, tmp_path):
    adapted(StochGraspConfig).save_pretrained(str(tmp_path / "s"), save_embedding_layers=False)
    with pytest.raises(ValueError, match="method STOCHGRASP and cannot start one with GRASP"):
        start_from(adapted(), tmp_path / "s")
    model = make_model("bert")
    model.config._name_or_path = model.name_or_path = "mine/bert"
    with pytest.raises(ValueError, match="method GRASP and cannot start one with BITFIT"):
        start_from(adapt(model, "bitfit"), saved[0])
