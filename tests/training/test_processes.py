"""Distributed training by accelerate, compared with a single process."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from analog_grasp.tasks import load_base_model, load_task

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from analog_grasp.adapters.registry import adapt
from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.tasks import load_base_model, load_task
from analog_grasp.training import train

folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
task = load_task("glue/sst2", folder)

def trained(name, epochs=2, **settings):
    model = load_base_model(task, str(folder))
    model = adapt(model, name, groups=4, target_modules="all-linear")
    _, layer = next(iter(frozen_layers(model)))
    drawn = []
    layer.register_forward_hook(lambda layer, *_: drawn.append(layer.weight[0, :4].clone()))
    train(model, task, epochs=epochs, batch_size=batch_size, **settings)
    whole = name == "full"
    bits = model.state_dict() if whole else get_peft_model_state_dict(model)
    ranges = vars(model).get("input_ranges", {})
    ranges = {f"range of {name}": torch.tensor(size) for name, size in ranges.items()}
    return bits | ranges, drawn

rank = os.environ.get("RANK", "0")
# SGD: rounding errors of gradients stay as small in the parameters.
steady = {"optim": "sgd", "learning_rate": 0.1}
save_file(trained("grasp", **steady)[0], folder / f"exact-{batch_size}-{rank}.safetensors")
bits, drawn = trained("full", injection=0.1)
contiguous = {name: value.contiguous() for name, value in bits.items()}
save_file(contiguous, folder / f"noisy-{batch_size}-{rank}.safetensors")
save_file({"drawn": drawn[0]}, folder / f"drawn-{batch_size}-{rank}.safetensors")
stages = {"then": "pcm-hermes-2@0s..1y", "then_steps": 3}
save_file(trained("grasp", **stages)[0], folder / f"stages-{batch_size}-{rank}.safetensors")
# A learning rate at which the score fluctuates, so that the best epoch is seldom the last.
chosen = {"epochs": 5, "learning_rate": 0.3, "evaluate_on": "pcm-hermes-2@1d"}
chosen |= {"converters": "pcm-hermes-2", "learn_ranges": True}
save_file(trained("grasp", **chosen)[0], folder / f"chosen-{batch_size}-{rank}.safetensors")
"""


@pytest.fixture
def folder(reader, tokenizer_folder, task, tmp_path):
    """A model folder with tokenizer, and the task in SST-2's file layout."""
    model = reader()
    model.save_pretrained(tmp_path)
    for file in tokenizer_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    rows = zip(task.train["text"], task.train["label"], strict=True)
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    (tmp_path / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "SST-2" / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch_size(folder):
    script = str(folder / "script.py")
    # `accelerate launch --cpu` starts a single process whatever --num_processes says.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    for command in ([script, str(folder), "16"], [*launch, script, str(folder), "8"]):
        subprocess.run([sys.executable, *command], check=True, timeout=600)

    def read(name):
        return load_file(folder / f"{name}.safetensors")

    alone, first, second = read("exact-16-0"), read("exact-8-0"), read("exact-8-1")
    start = load_base_model(load_task("glue/sst2", folder), str(folder)).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4)
        assert torch.equal(first[name], second[name])
    for training in ("stages", "chosen"):
        expected = read(f"{training}-8-0")
        for name, value in read(f"{training}-8-1").items():
            assert torch.equal(value, expected[name])
    assert sum("range of" in name for name in expected) == 13
    # Each process draws its own noise, also on trainable weights; the results agree.
    assert not torch.equal(read("drawn-8-0")["drawn"], read("drawn-8-1")["drawn"])
    assert torch.equal(read("drawn-8-0")["drawn"], read("drawn-16-0")["drawn"])
    noisy = read("noisy-8-0")
    for name, value in read("noisy-8-1").items():
        assert torch.equal(value, noisy[name])
    name = next(name for name in noisy if name.endswith("query.weight"))
    assert not torch.equal(noisy[name], start[name.removeprefix("base_model.model.")])
