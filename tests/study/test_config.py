"""The settings of a study: defaults, files, ranges, and settings without effect."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tomli_w
import torch
from datasets import Dataset

import analog_grasp as ag
from analog_grasp.adapters.config import Form, Grouping
from analog_grasp.adapters.registry import adapt
from analog_grasp.cli.options import choices
from analog_grasp.study.config import ONE_STAGE, SETTINGS, StudyConfig, flat, resolve
from analog_grasp.study.fields import split_names
from analog_grasp.study.provenance import data_hash, open_run
from analog_grasp.tasks import GenerationTask, registry
from analog_grasp.tasks.reviews import reviews

TASK = reviews(train=4, validation=4)


@pytest.fixture
def config(tmp_path):
    """Writes a config file."""

    def write(text: str | bytes):
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_defaults_are_the_main_job():
    config = resolve({})
    assert (config.model.name, config.task.name) == (None, "reviews")
    assert config.model.adapters == ("grasp", "stochgrasp")
    assert {name.split("-")[0] for name in config.hardware.devices} == {"pcm", "rram"}
    assert config.run.times == ("0s", "1d", "30d", "1y")
    assert (config.hardware.placement, config.training.groups, config.run.seed) == (
        "digital",
        None,
        0,
    )
    assert config.run.repeats > 1


def test_every_setting_has_a_description_and_a_unique_name():
    count = sum(
        len(getattr(StudyConfig(), section).model_fields) for section in StudyConfig.model_fields
    )
    assert len(SETTINGS) == count
    for name, setting in SETTINGS.items():
        assert setting.info.description, name
        assert setting.info.description.endswith("."), name


def test_the_settings_need_no_heavy_package():
    code = (
        "import sys, analog_grasp.study.config; "
        "print({'torch', 'numba', 'transformers', 'aihwkit', 'pandas'} & sys.modules.keys())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"


def test_counts_may_be_a_text_of_several():
    assert resolve({"recalibrate": "16,64"}).run.recalibrate == (16, 64)


def test_times_are_kept_in_one_spelling():
    times = resolve({"times": ["0", "3600", "7d", "2w", "1mo"]}).run.times
    assert times == ("0s", "1h", "7d", "14d", "30d")


@pytest.mark.parametrize("name", ["noise_target", "injection"])
def test_text_is_a_number_or_a_device(name):
    assert resolve({name: "0.2"}).value(name) == 0.2
    assert resolve({name: "pcm-hermes-2@1d"}).value(name) == "pcm-hermes-2@1d"


def test_none_means_not_given(config):
    found = resolve({"groups": None, "repeats": 4}, config("groups = 8\nrepeats = 2"))
    assert (found.training.groups, found.run.repeats) == (8, 4)
    assert found.given() == {"groups", "repeats"}


def test_a_config_file_overrides_only_the_defaults(config):
    path = config('devices = ["ideal"]\nnoise_target = "pcm-hermes-2@1d"')
    expected = {"devices": ("ideal",), "noise_target": "pcm-hermes-2@1d", "seed": 3}
    assert resolve({"seed": 3}, path) == StudyConfig().replace(**expected)


def test_run_toml_reproduces_the_settings(tmp_path):
    config = resolve(
        {
            "model": "folder",
            "task": "glue/sst2",
            "data_dir": "glue",
            "times": ("20s",),
            "target_modules": ("query",),
            "noise_target": "rram-wan2022@1d",
            "learning_rate": 1 / 3,
            "trust_remote_code": True,
        }
    )
    open_run(tmp_path / "run", config, TASK)
    found = resolve({}, tmp_path / "run" / "run.toml")
    assert found == config.replace(trust_remote_code=False)
    assert resolve({}, tmp_path / "run" / "run.toml") == resolve(flat(config))
    tomli_w.dumps(flat(config))


def test_a_run_that_did_not_name_form_and_grouping_resumes(tmp_path):
    config = resolve({"groups": 4})
    open_run(tmp_path / "run", config, TASK)
    text = (tmp_path / "run" / "run.toml").read_text()
    assert "form =" not in text
    assert "grouping =" not in text
    assert open_run(tmp_path / "run", config, TASK) == config
    with pytest.raises(ValueError, match="another run, whose form is None and not 'normalize'"):
        open_run(tmp_path / "run", config.replace(form="normalize"), TASK)


@pytest.mark.parametrize(("name", "kind"), [("form", Form), ("grouping", Grouping)])
def test_the_choices_are_those_of_the_adapter(name, kind):
    assert tuple(choices(SETTINGS[name])) == get_args(kind)


def test_replaced_settings_are_checked_and_stay_given():
    config = resolve({"groups": 4, "trust_remote_code": True}).replace(workers=2)
    assert config.given() == {"groups", "trust_remote_code", "workers"}
    with pytest.raises(ValueError, match="groups is 0"):
        config.replace(groups=0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("grasp, lora,", ("grasp", "lora")),
        ("{0}/a,b.toml", ("{0}/a,b.toml",)),
        ("ideal,{0}/a,b.toml, {0}/c.toml", ("ideal", "{0}/a,b.toml", "{0}/c.toml")),
        ("{0}/a,ideal", ("{0}/a", "ideal")),
        ("", ()),
    ],
)
def test_names_are_split_at_commas_outside_of_paths(tmp_path, text, names):
    for name in ("a,b.toml", "c.toml"):
        (tmp_path / name).touch()
    assert split_names(text.format(tmp_path)) == tuple(name.format(tmp_path) for name in names)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"repeat": 3}, r"Unknown setting 'repeat'\. Did you mean 'repeats'\?$"),
        ({"times": ["1 fortnight"]}, r'times.*"1 fortnight" has the unknown unit "fortnight"'),
        ({"times": ["-1s"]}, r'times.*"-1s" is negative'),
        ({"times": ["1h", "3600s"]}, "times is .*: 1h is listed more than once"),
        ({"times": []}, "times is .*at least 1 item"),
        ({"devices": ["ideal", "ideal"]}, "devices is .*: ideal is listed more than once"),
        ({"adapters": ["grasp", "grasp"]}, "adapters is .*: grasp is listed more than once"),
        ({"placement": "analog"}, "placement is 'analog'.*'digital', 'folded' or 'programmed'"),
        ({"trainings": True}, "trainings is True"),
        ({"injection": True}, "injection is True"),
        ({"workers": 0}, "workers is 0.*greater than or equal to 1"),
        ({"until_ci": 0}, "until_ci is 0.*greater than 0"),
        ({"repeats": 0}, "repeats is 0.*greater than or equal to 1"),
        ({"groups": 2.5}, "groups is 2.5.*integer"),
        ({"form": "quadratic"}, "form is 'quadratic'.*'affine' or 'normalize'"),
        ({"grouping": "sorted"}, "grouping is 'sorted'.*'contiguous', 'strided' or 'random'"),
        ({"recalibrate": (1,)}, "recalibrate is 1.*greater than or equal to 2"),
        ({"injection": float("nan")}, "injection is nan"),
        ({"injection": -0.1}, "injection is -0.1"),
        ({"noise_weight": float("inf")}, "noise_weight is inf"),
        ({"epochs": float("inf")}, "epochs is inf"),
        ({"epochs": 0}, "epochs is 0.*greater than 0"),
        ({"engine": "abacus"}, "engine is 'abacus'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_invalid_settings_raise_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        resolve(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ray_address": "auto"}, "^The setting ray_address is 'auto'.*without the engine ray"),
        ({"programming_error": "learned"}, "'learned'.*without the placement programmed"),
        ({"weights": "digital"}, "weights is 'digital'.*without the placement programmed"),
        (
            {"weights": "digital", "placement": "programmed", "calibrate": 99},
            "calibrate is 99.0, .* without the weights analog",
        ),
        ({"repeats_limit": 9}, "repeats_limit is 9.*without until_ci"),
        ({"trainings_limit": 5, "trainings": 2}, "trainings_limit is 5, .* without until_ci"),
        ({"trainings_limit": 5, "until_ci": 1.0}, "is 5, .* without trainings of 2 or more"),
        ({"tiles": 3}, "tiles is 3, which has no effect without costs"),
        ({"recalibrate": (4,), "placement": "folded"}, "no effect without the placement digital"),
        ({"recalibrate_groups": 8}, "recalibrate_groups is 8, .* without recalibrate"),
        ({"recalibrate_method": "statistics"}, "'statistics', .* without recalibrate"),
        ({"recalibrate_steps": 8}, "recalibrate_steps is 8, .* without recalibrate"),
        (
            {"recalibrate_steps": 8, "recalibrate": (4,), "recalibrate_method": "statistics"},
            "recalibrate_steps is 8, .* effect on the recalibrate_method statistics: omit",
        ),
        ({"schedule": "simulated", "placement": "folded"}, "without the placement digital"),
        ({"then": "none", "then_steps": 2}, "then_steps is 2, .* without a second stage"),
        (
            {"task": "e2e", "length_penalty": 0.5, "beams": 1},
            "length_penalty is 0.5.*without two beams or more",
        ),
        (
            {"groups": 4, "adapters": ["lora"]},
            "groups is 4.*no effect on lora: it applies to grasp",
        ),
        ({"form": "normalize", "adapters": ["lora"]}, "form is 'normalize', .* effect on lora: it"),
        ({"grouping": "strided", "adapters": ["lora"]}, "grouping is 'strided', .* effect on lora"),
        ({"target_modules": ["query"], "adapters": ["ia3", "head"]}, "no effect on ia3 or head"),
        ({"noise_weight": 2.0, "adapters": ["grasp"]}, "noise_weight.*applies to stochgrasp"),
        ({"sigma_lr_ratio": 3, "adapters": ["grasp"]}, "sigma_lr_ratio.*applies to stochgrasp"),
        ({"noise_weight_schedule": "linear", "adapters": ["grasp"]}, "applies to stochgrasp"),
        ({"noise_target_schedule": "linear", "adapters": ["lora"]}, "applies to stochgrasp"),
        ({"groups": 8, "adapters": ["lora", "runs/mine"]}, "groups is 8, .* no effect on lora: it"),
        ({"groups": 8, "adapters": ["runs/mine"]}, "groups is 8, .* effect on saved adapters"),
    ],
)
def test_settings_without_effect_are_errors(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(given)


@pytest.mark.parametrize(
    "given",
    [
        {"shift_lr_ratio": 0.5, "adapters": ["lora"]},
        {"groups": 4, "adapters": ["lora", "grasp"]},
        {"groups": 4, "adapters": ["grasp", "runs/mine"]},
        {"recalibrate": (4,), "recalibrate_groups": 8, "adapters": ["lora", "runs/mine"]},
        {"programming_error": "learned", "placement": "programmed"},
        {"task": "e2e", "length_penalty": 0.5, "beams": 2},
    ],
)
def test_settings_with_effect_are_accepted(given):
    assert resolve(given).given() == given.keys()


@pytest.mark.parametrize("text", ["groups = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_an_error(config, text):
    with pytest.raises(ValueError, match=r"config\.toml is not valid TOML"):
        resolve({}, config(text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml does not exist"):
        resolve({}, tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("name", "without"),
    [("compare", set()), ("drift_sweep", {"adapters", "trainings", "trainings_limit"})],
)
def test_the_signature_lists_every_setting(name, without):
    parameters = inspect.signature(getattr(ag, name)).parameters
    assert SETTINGS.keys() - parameters.keys() == without - parameters.keys()
    assert (parameters["repeats"].annotation, parameters["repeats"].default) == (int, 4)
    assert parameters["until_ci"].annotation == float | None


@pytest.fixture
def generation(monkeypatch):
    """Return a task that generates text, loaded in place of every other."""
    rows = Dataset.from_dict({"text": ["name : Zizzi"], "references": [["Eat at Zizzi."]]})
    task = GenerationTask("mine", rows, rows, metrics=("bleu",))
    monkeypatch.setattr("analog_grasp.tasks.load_task", lambda name, folder: task)
    return task


def test_generation_settings_default_to_those_of_the_task(generation):
    assert StudyConfig().task.load() is generation
    given = {"beams": 2, "length_penalty": 1.5, "no_repeat_ngram": 0}
    asked = resolve({"task": "e2e", **given}).task.load()
    assert (asked.beams, asked.length_penalty, asked.no_repeat_ngram) == (2, 1.5, 0)
    assert (generation.beams, generation.length_penalty, generation.no_repeat_ngram) == (10, 0.9, 4)


def test_each_generation_setting_changes_the_data_hash(generation, monkeypatch):
    monkeypatch.setattr(GenerationTask, "encode", lambda *_: generation.validation)
    settings = [{}, {"beams": 4}, {"length_penalty": 1.0}, {"no_repeat_ngram": 3}]
    hashes = {data_hash(resolve({"task": "e2e", **each}).task.load(), None) for each in settings}
    assert len(hashes) == len(settings)


def test_generation_settings_without_generation_raise():
    named = "beams is 4, which has no effect without a task that generates text, such as e2e"
    for task in ("reviews", "glue/sst2", "lm", "lm-eval/arc_easy"):
        with pytest.raises(ValueError, match=named):
            resolve({"beams": 4, "task": task})
    assert resolve({"beams": 4, "task": "e2e/dev"}).task.beams == 4


def test_a_task_of_a_user_can_have_any_kind(monkeypatch):
    monkeypatch.setitem(registry._LOADERS, "mine", lambda _: reviews(train=8, validation=8))
    settings = resolve({"beams": 4, "task": "mine"})
    with pytest.raises(ValueError, match="beams is 4, but the task 'reviews' generates no text"):
        settings.task.load()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": True}, "epochs is True: it should be a number"),
        ({"repeats": False}, "repeats is False: it should be a whole number"),
        ({"groups": True}, "groups is True: it should be a whole number"),
        ({"clip": True}, "clip is True: it should be a number"),
        ({"devices": 5}, "devices is 5: it should be a list"),
        ({"times": True}, "times is True: it should be"),
    ],
)
def test_values_of_another_kind_raise(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(settings)


@pytest.mark.parametrize("name", ["model", "data_dir", "teacher", "start_from"])
def test_a_path_may_be_a_path(name):
    assert resolve({"task": "csv", name: Path("my/folder")}).value(name) == "my/folder"
    found = resolve({"devices": [Path("my.toml"), "ideal"], "adapters": Path("runs/mine")})
    assert found.hardware.devices == ("my.toml", "ideal")
    assert found.model.adapters == ("runs/mine",)


def test_a_file_may_have_settings_of_a_second_stage_that_a_command_lacks(config):
    file = config("then_steps = 50\ngroups = 8")
    assert resolve({}, file).training.then_steps == 50
    assert resolve({}, file, ONE_STAGE).given() == {"groups", "then"}
    assert resolve({"then": "ideal@0s"}, file, ONE_STAGE).training.then_steps == 50
    with pytest.raises(ValueError, match=r"then_steps is 50, .* without a second stage"):
        resolve({"then_steps": 50}, file, ONE_STAGE)


def test_times_may_be_seconds():
    assert resolve({"times": [0, "1d", 3600.0]}).run.seconds == [0.0, 86400.0, 3600.0]
    assert resolve({"times": 86400}).run.times == ("1d",)


@pytest.mark.parametrize(("name", "value"), [("beams", 0), ("no_repeat_ngram", -1)])
def test_generation_settings_out_of_range_raise(generation, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: it should be greater than"):
        resolve({name: value})
    with pytest.raises(ValueError, match=f"has {name} = {value}; it should be"):
        GenerationTask("bad", generation.train, generation.validation, **{name: value})


def test_exact_weights_leave_the_noise_of_the_adapter(bert, batch):
    model = adapt(bert, "grasp", groups=4, target_modules="all-linear").eval()
    config = resolve({"placement": "programmed", "weights": "digital"})
    assert config.hardware.changes() == {"weights": "digital"}
    digital = model(**batch).logits
    for device, exact in (("gaussian:0", True), ("gaussian:0.1", False)):
        deployed = ag.deploy(
            model, ag.DeviceCard.load(device), **config.hardware.deploy_arguments()
        )
        deployed.program(seed=0)
        assert deployed.report() == []
        assert torch.allclose(deployed.model(**batch).logits, digital) is exact


@pytest.mark.parametrize("name", ["target_modules", "layers"])
def test_text_of_a_file_is_endings_as_on_the_command_line(name, tmp_path):
    file = tmp_path / "mine.toml"
    for text, value in (("query", ("query",)), ("query, value", ("query", "value")),
                        ("all-linear", "all-linear")):  # fmt: skip
        file.write_text(f'{name} = "{text}"\n')
        assert resolve({}, file).value(name) == value
