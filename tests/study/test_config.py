"""The settings of a study: defaults, files, and what is refused."""

import pytest
import tomli_w

from analog_grasp.study.config import Settings, resolve
from analog_grasp.study.folder import claim


@pytest.fixture
def config(tmp_path):
    """Writes a config file."""

    def write(text: str | bytes):
        path = tmp_path / "asked.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_defaults_are_the_main_job():
    settings = resolve({})
    assert settings.model is None
    assert settings.task == "reviews"
    assert settings.adapters == ("grasp", "stochgrasp")
    assert {name.split("-")[0] for name in settings.devices} == {"pcm", "rram"}
    assert settings.times == ("0s", "1h", "1d", "30d", "1y")
    assert (settings.placement, settings.groups, settings.seed) == ("digital", 16, 0)
    assert settings.repeats > 1


def test_times_are_kept_in_one_spelling():
    assert resolve({"times": ["0", "3600", "7d", "2w", "1mo"]}).times == (
        "0s",
        "1h",
        "7d",
        "14d",
        "30d",
    )


def test_a_target_given_as_text_is_a_number_or_a_device():
    assert resolve({"noise_target": "0.2"}).noise_target == 0.2
    assert resolve({"noise_target": "pcm-hermes-2@1d"}).noise_target == "pcm-hermes-2@1d"


def test_what_is_none_is_not_given(config):
    settings = resolve({"groups": None, "repeats": 4}, config("groups = 8\nrepeats = 2"))
    assert (settings.groups, settings.repeats) == (8, 4)


def test_a_config_file_overrules_the_defaults_and_nothing_else(config):
    path = config('devices = ["ideal"]\nnoise_target = "pcm-hermes-2@1d"')
    settings = resolve({"seed": 3}, path)
    assert settings == Settings(devices=("ideal",), noise_target="pcm-hermes-2@1d", seed=3)


def test_a_run_says_itself_how_to_run_it_again(tmp_path):
    asked = Settings(task="glue/sst2", data_dir="glue", times=("20s",), target_modules=("query",))
    claim(tmp_path / "run", asked)
    assert resolve({}, tmp_path / "run" / "run.toml") == asked


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"repeat": 3}, r"no setting 'repeat': the settings are .*model, task.*repeats"),
        ({"times": ["1 fortnight"]}, r'times.*"1 fortnight" has the unknown unit "fortnight"'),
        ({"times": ["-1s"]}, r'times.*"-1s" is negative'),
        ({"times": ["1h", "3600s"]}, "1h stands in times more than once"),
        ({"times": []}, "times is .*at least 1 item"),
        ({"devices": ["ideal", "ideal"]}, "ideal stands in devices more than once"),
        ({"adapters": ["grasp", "grasp"]}, "grasp stands in adapters more than once"),
        ({"placement": "analog"}, "placement is 'analog'.*'digital', 'folded' or 'programmed'"),
        ({"workers": 0}, "workers is 0.*greater than or equal to 1"),
        ({"until_ci": 0}, "until_ci is 0.*greater than 0"),
        ({"ray_address": "auto"}, "^The setting ray_address is 'auto'.*without the engine ray"),
        ({"error": "learned"}, "error is 'learned'.*without the placement programmed"),
        ({"repeats_limit": 9}, "repeats_limit is 9.*without until_ci"),
        ({"repeats": 0}, "repeats is 0.*greater than or equal to 1"),
        ({"groups": 2.5}, "groups is 2.5.*integer"),
        ({"injection": float("nan")}, "injection is nan"),
        ({"injection": -0.1}, "injection is -0.1"),
        ({"epochs": 0}, "epochs is 0.*greater than 0"),
        ({"engine": "abacus"}, "engine is 'abacus'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        resolve(given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["injection", "noise_weight", "epochs", "learning_rate"])
def test_numbers_must_be_finite(name):
    with pytest.raises(ValueError, match=f"{name} is inf"):
        resolve({name: float("inf")})


def test_an_unknown_setting_in_a_file_is_refused(config):
    with pytest.raises(ValueError, match="no setting 'colour'"):
        resolve({}, config('colour = "red"'))


@pytest.mark.parametrize("text", ["groups = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(config, text):
    with pytest.raises(ValueError, match=r"asked\.toml is not valid TOML"):
        resolve({}, config(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml does not exist"):
        resolve({}, tmp_path / "nowhere.toml")


def test_settings_survive_a_round_trip_through_toml(config):
    asked = Settings(model="folder", noise_target="rram-wan2022@1d", learning_rate=1 / 3)
    written = tomli_w.dumps(asked.model_dump(mode="json", exclude_none=True))
    assert resolve({}, config(written)) == asked
