"""What a cell comes from: what has changed since is not taken for what was measured."""

import hashlib
import json
import shutil
import sqlite3
from dataclasses import astuple
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from analog_grasp.study import adapters, runner
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.runner import prepare
from analog_grasp.study.store import Store


def records(folder: Path) -> dict:
    with Store(folder / "results.sqlite") as store:
        return {record.adapter: record for record in store.adapters()}


def test_an_adapter_that_has_gone_is_refused(trained, tmp_path, measure, asked):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "adapters" / "grasp")
    with pytest.raises(ValueError, match="not the one that this run has measured: put it back"):
        measure(resolve(asked), folder)


def test_an_adapter_changed_after_it_was_measured_is_refused(
    trained, tmp_path, measure, values, asked
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "adapters" / "grasp" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, path)
    with pytest.raises(
        ValueError, match=r"adapters/grasp is not the one that this run has measured"
    ):
        measure(resolve(asked), folder)
    assert values(folder) == values(trained)


@pytest.mark.parametrize(("change", "told"), [("drop", "lacks"), ("add", "holds a surplus of")])
def test_an_adapter_of_other_layers_than_the_model_is_refused(
    settings, trained, tmp_path, change, told
):
    folder = tmp_path / "partial"
    shutil.copytree(trained / "adapters" / "grasp", folder)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "attention" in name)
    if change == "drop":
        del weights[name]
    else:
        weights[name.replace("layer.0", "layer.1")] = weights[name].clone()
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"partial does not fit the model .*: it {told} base"):
        prepare(settings.replace(adapters=(str(folder),)), tmp_path / "run")


def test_saved_adapters_are_loaded_once(settings, tmp_path, monkeypatch, measure):
    loads = []
    load = runner.load_with_hash
    monkeypatch.setattr(runner, "load_with_hash", lambda *a: loads.append(a[0]) or load(*a))
    measure(settings, tmp_path / "run")
    assert sorted(loads) == sorted(map(Path, settings.model.adapters))


def test_the_same_adapter_begins_from_the_same_numbers(asked, task):
    # LoRA draws one of its matrices at random.
    first, second = (adapters.new_adapter(resolve(asked), task, "lora") for _ in range(2))
    found = [dict(model.named_parameters()) for model in (first, second)]
    name = next(name for name in found[0] if "lora_A" in name)
    assert found[0][name].abs().sum() > 0
    assert found[0][name].equal(found[1][name])


def card_file(folder: Path, change: tuple[str, str] = ("", "")) -> str:
    path = folder / "mine.toml"
    text = (Path(runner.__file__).parents[2] / "device_models/pcm-hermes-2.toml").read_text()
    text = text.replace('name = "pcm-hermes-2"', 'name = "mine"')
    path.write_text(text.replace(*change) if change[0] else text)
    return str(path)


def test_a_card_of_ones_own_is_called_by_its_name(settings, trained, tmp_path, measure, values):
    mine = settings.replace(devices=(card_file(tmp_path),))
    found = values(measure(mine, tmp_path / "run"))
    shipped = {key._replace(device="mine"): v for key, v in values(trained).items()
               if key.device == "pcm-hermes-2"}  # fmt: skip
    assert found == shipped


def test_devices_of_one_name_are_refused(settings, tmp_path):
    (tmp_path / "other").mkdir()
    both = (card_file(tmp_path), card_file(tmp_path / "other"))
    with pytest.raises(ValueError, match="a device is called by the name in its card"):
        prepare(settings.replace(devices=both), tmp_path / "run")


def test_an_edited_card_is_measured_anew_and_the_old_one_is_kept(
    settings, tmp_path, measure, values
):
    mine = settings.replace(devices=(card_file(tmp_path),), repeats=1)
    first = values(measure(mine, tmp_path / "run"))
    card_file(tmp_path, ("[0.16603222,", "[0.5,"))
    second = values(measure(mine, tmp_path / "run"))
    assert second.keys() == first.keys()
    assert all(second[key] != first[key] for key in first)
    card_file(tmp_path, ('title = "', 'title = "Once more: '))
    steps = []
    measure(mine, tmp_path / "run", lambda *stage: steps.append(stage))
    assert steps == []
    assert values(tmp_path / "run") == first


def as_version_1(folder: Path, tables: str) -> None:
    """Turn the store of a run into what version 1 would have written."""
    with Store(folder / "results.sqlite") as store:
        cells = [astuple(cell) for cell in store.measurements()]
        records = store.adapters()
    (folder / "results.sqlite").unlink()
    with sqlite3.connect(folder / "results.sqlite") as old:
        old.executescript(tables)
        old.executemany(f"INSERT INTO measurements VALUES ({', '.join('?' * 9)})", cells)
        for number, r in enumerate(records):
            weights = (folder / r.path / "adapter_model.safetensors").read_bytes()
            row = (number, r.adapter, r.task, r.trainable_parameters, r.head_parameters,
                   json.dumps(r.digital), r.train_seconds, r.path,
                   hashlib.blake2b(weights, digest_size=16).hexdigest())  # fmt: skip
            old.execute(f"INSERT INTO adapters VALUES ({', '.join('?' * 9)})", row)
    old.close()


def test_a_run_of_version_1_goes_on(asked, trained, tmp_path, measure, values, version_1):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    as_version_1(folder, version_1)
    with sqlite3.connect(folder / "results.sqlite") as old:
        old.execute("DELETE FROM measurements WHERE seed = 4 AND device = 'rram-wan2022'")
    old.close()
    left = []
    measure(resolve(asked), folder, lambda _, total: left.append(total) or silent("", 0))
    assert left == [4]
    assert values(folder) == values(trained)
    assert records(folder) == records(trained)
