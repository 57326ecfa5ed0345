"""Training from a teacher: outputs in place of labels, checks before, and what is kept."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from small_models import bits, same_bits
from transformers import BertConfig, BertForSequenceClassification, BertModel, TrainerCallback

from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.adapters.registry import adapt
from analog_grasp.crossbar import deploy
from analog_grasp.tasks import LanguageModelingTask, SentenceTask, load_base_model
from analog_grasp.training import train
from analog_grasp.training.distillation import Teacher
from analog_grasp.training.examples import draw_examples

FAST = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-2}


def adapted(model, kind="grasp", **changes):
    given = {"groups": 4, "target_modules": "all-linear", "noise_weight": 1.0}
    given |= {"noise_target": 0.1, "sampling": "feature"} | changes
    torch.manual_seed(0)
    return adapt(model, kind, **given)


def taught(model):
    """Return a GRASP adapter with random parameters, which another one can learn exactly."""
    teacher = adapted(model)
    draws = torch.Generator().manual_seed(1)
    for parameter in teacher.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draws)
    return teacher.train()


@pytest.fixture
def teacher(reader):
    return taught(reader())


@pytest.fixture
def student(reader):
    return adapted(reader(dropout=False))


def regression(task):
    rows = Dataset.from_dict({"text": task.train["text"][:], "label": [1.0, 2.0] * 32})
    return SentenceTask("numbers", rows, rows, metrics=("mse",))


def with_labels(task, change):
    rows = Dataset.from_dict(
        {"text": task.train["text"][:], "label": [change(label) for label in task.train["label"]]}
    )
    return dataclasses.replace(task, train=rows)


def one_output(model):
    model.config.num_labels, model.num_labels = 1, 1
    model.config.problem_type = "regression"
    model.classifier = torch.nn.Linear(32, 1)
    return model


@pytest.fixture(params=["classes", "numbers", "tokens"])
def lesson(request, reader, task, llama_folder):
    """A task of each kind, a teacher and a student that knows nothing of it."""
    if request.param == "classes":
        return task, taught(reader()), adapted(reader())
    if request.param == "numbers":
        return regression(task), taught(one_output(reader())), adapted(one_output(reader()))
    rows = Dataset.from_dict({"text": ["the cat sat on a mat . a dog ran on the hill ."] * 16})
    texts = LanguageModelingTask("words", rows, rows, max_length=8)
    models = (load_base_model(texts, str(llama_folder)) for _ in range(2))
    return texts, taught(next(models)), adapted(next(models))


def test_a_student_under_noise_learns_the_outputs_of_its_teacher(lesson):
    task, teacher, student = lesson
    batch = draw_examples(task, 16, student, seed=0)
    before = bits(teacher)

    def distance():
        return Teacher(teacher.eval(), 0.0).loss(student.eval(), batch).item()

    first = distance()
    teacher.train()
    train(student, task, teacher=teacher, injection=0.02, **FAST | {"epochs": 12})
    assert not teacher.training
    assert distance() < 0.5 * first
    assert same_bits(bits(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_labels_are_not_used(task, reader, teacher):
    found = []
    for labels in (task, with_labels(task, lambda label: 1 - label)):
        model = adapted(reader())
        train(model, labels, teacher=teacher, **FAST)
        found.append(bits(model))
    assert same_bits(*found)
    model = adapted(reader())
    train(model, task, **FAST)
    assert not same_bits(bits(model), found[0])


def test_the_teacher_computes_with_clean_weights(task, student, teacher):
    layers = [
        model.base_model.model.bert.encoder.layer[0].output.dense for model in (student, teacher)
    ]
    clean = [layer.get_base_layer().weight.clone() for layer in layers]
    seen = [[], []]
    for layer, weights in zip(layers, seen, strict=True):
        layer.register_forward_pre_hook(
            lambda layer, _, weights=weights: weights.append(layer.get_base_layer().weight.clone())
        )
    settings = FAST | {"converters": "pcm-hermes-2", "injection": 0.5}
    train(student, task, teacher=teacher, **settings)
    assert all(torch.equal(weight, clean[1]) for weight in seen[1])
    # One forward pass measures the size of the inputs, and one checks the outputs.
    noisy = [not torch.equal(weight, clean[0]) for weight in seen[0]]
    assert (sum(noisy), len(noisy)) == (8, 10)


def test_the_noise_aware_loss_is_added(task, reader, teacher):
    model = adapted(reader(), "stochgrasp", noise_weight=100.0)
    train(model, task, teacher=teacher, epochs=5, batch_size=8, learning_rate=5e-2)
    layers = [m for m in model.modules() if isinstance(m, StochGraspLinear)]
    sigmas = torch.cat([s for layer in layers for s in layer.relative_sigmas("default")])
    torch.testing.assert_close(sigmas, torch.full_like(sigmas, 0.1), rtol=0.1, atol=0)


def test_a_resumed_training_ends_with_the_same_bits_and_saves_no_teacher(
    task, reader, teacher, tmp_path
):
    class Stops(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    def trained(**more):
        model = adapted(reader(), "stochgrasp")
        train(model, task, teacher=teacher, injection=0.1, **FAST, **more)
        return get_peft_model_state_dict(model, save_embedding_layers=False)

    kept = {"output_dir": tmp_path, "save_steps": 3}
    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(**kept, callbacks=[Stops()])
    (saved,) = tmp_path.glob("checkpoint-3/*.safetensors")
    assert load_file(saved).keys() == whole.keys()
    assert same_bits(trained(**kept, resume_from_checkpoint=True), whole)


def small_teacher(reader, **changes):
    """Return a BERT of another width, with the tokenizer of `reader`."""
    given = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(2)
    model = BertForSequenceClassification(BertConfig(**given | {"intermediate_size": 20} | changes))
    model.config._name_or_path = reader().config._name_or_path
    return model


def swapped(reader):
    model = reader()
    model.config.id2label, model.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    return model


def several_labels(reader):
    model = reader()
    model.config.problem_type = "multi_label_classification"
    return model


def without_a_head(reader):
    model = BertModel(reader().config)
    model.config._name_or_path = reader().config._name_or_path
    return model


def other_words(reader, tmp_path):
    tokenizer = (tmp_path / "tokenizer.json").read_text().replace('"film"', '"movie"')
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    model = reader()
    model.config._name_or_path = str(tmp_path)
    return model


TEACHERS = {
    "labels": (
        lambda reader: small_teacher(reader, num_labels=3),
        r"shape \(3,\) and those of the",
    ),
    "problem type": (several_labels, "is for multi_label_classification and that of the model"),
    "no head": (without_a_head, r"outputs of the teacher have the shape \(\d+, 32\)"),
    "vocabulary": (
        lambda reader: small_teacher(reader, vocab_size=60),
        "of 60 tokens, is not that",
    ),
    "positions": (
        lambda reader: small_teacher(reader, max_position_embeddings=4),
        "The teacher reads 4 tokens and the model 128",
    ),
    "order": (swapped, "classes of the teacher are in the order good, bad and .* order bad, good"),
    "chip": (lambda reader: deploy(taught(reader()), "ideal").program(0).model, "or on a chip"),
    "module": (lambda reader: torch.nn.Linear(2, 2), "The teacher is a Linear"),
}


@pytest.mark.parametrize(("make", "sentence"), TEACHERS.values(), ids=TEACHERS)
def test_a_teacher_that_does_not_fit_raises_before_training(task, reader, make, sentence):
    model = reader()
    model.config.problem_type = "single_label_classification"
    model = adapted(model)
    before = bits(model)
    with pytest.raises(ValueError, match=sentence) as caught:
        train(model, task, teacher=make(reader), **FAST)
    assert str(caught.value).endswith(".")
    assert same_bits(bits(model), before)


def test_the_order_of_a_loaded_teacher_is_that_of_its_outputs(task, reader, student, tmp_path):
    swapped(reader).save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    # transformers writes the names by class in alphabetical order.
    assert list(loaded.config.label2id) == ["bad", "good"]
    loaded.config._name_or_path = reader().config._name_or_path
    with pytest.raises(ValueError, match="the teacher are in the order good, bad and those"):
        train(student, task, teacher=loaded, **FAST)


def test_a_vocabulary_of_the_same_size_with_other_words_raises(
    task, reader, student, tokenizer_folder, tmp_path
):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((tokenizer_folder / name).read_text())
    with pytest.raises(ValueError, match="vocabulary of the teacher"):
        train(student, task, teacher=other_words(reader, tmp_path), **FAST)


def test_a_teacher_that_shares_layers_with_the_model_raises(task, reader):
    base = reader()
    with pytest.raises(ValueError, match="shares layers with the model that it teaches"):
        train(adapted(base), task, teacher=base, **FAST)
