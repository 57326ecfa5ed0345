"""Damaged and random cards, configs, adapter folders and command lines: documented errors only.

Each property is tried on a few examples that stay the same, and in the slow tests on many new ones.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from analog_grasp.cli import main
from analog_grasp.cli.main import COMMANDS, app, load_command
from analog_grasp.devices import cards_folder
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import profile as device_profile
from analog_grasp.study.config import SETTINGS, StudyConfig, flat, resolve
from analog_grasp.study.trained_adapters import load_adapter, new_adapter, save_adapter
from analog_grasp.tasks import Task
from analog_grasp.tasks.reviews import reviews as generate_reviews
from analog_grasp.utils.errors import CardError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    st.sampled_from(
        ["", " ", "..", "/", "a\0b", "\x1b[2J", "[red]", "<b>", "nan", "1e999", "-1", "x" * 500,
         0, -1, 2**63, -(2**70), 10**400, True, 1e-320, 1e300, float("nan"), float("inf")]
    ),
    TEXT,
    st.integers(),
    st.floats(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


def tried(check: Callable[..., None], examples: int, **settled: bool) -> Callable[..., None]:
    """A test that runs a check on so many examples."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **settled,
    )(given(data=st.data())(check))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within nested data: what holds it, and its key."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def spoiled(data: st.DataObject, tree: dict[str, Any]) -> dict[str, Any]:
    """A copy in which something is another value, gone, twice, or called by another name."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        everywhere = list(places(tree))
        if not everywhere:
            break
        holder, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
        match data.draw(st.sampled_from(["replace", "replace", "remove", "repeat", "rename"])):
            case "replace":
                holder[key] = data.draw(VALUES)
            case "remove":
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder.extend(holder[key : key + 1] * data.draw(st.sampled_from([1, 20])))
            case "rename" if isinstance(holder, dict):
                holder[data.draw(TEXT)] = holder.pop(key)
    return tree


def torn(data: st.DataObject, content: bytes) -> bytes:
    """A file with a piece of it cut out, doubled or written over."""
    start = data.draw(st.integers(0, len(content)))
    end = min(len(content), start + data.draw(st.integers(0, 40)))
    new = data.draw(st.binary(max_size=40) | st.just(content[start:end] * 2))
    return content[:start] + new + content[end:]


def is_sentence(error: BaseException | str) -> None:
    text = str(error)
    assert text.endswith((".", "?"))
    assert "\n" not in text
    assert 10 < len(text) < 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """The working folder of the tests, without access to the Hub."""
    before, here = Path.cwd(), tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        os.chdir(here)
        yield here
        os.chdir(before)


CARDS = [tomllib.loads(path.read_text()) for path in sorted(cards_folder().glob("*.toml"))]


def check_card(path: Path) -> None:
    """Check that a card raises one sentence, or has finite noise."""
    try:
        card = DeviceCard.load(path)
    except CardError as error:
        is_sentence(error)
        return
    for time in (0.0, 86_400.0, 1e12):
        profile = device_profile(card, time)
        for numbers in (profile.mean_at(np.linspace(-1, 1, 9)), profile.std_at(np.ones(3))):
            assert np.isfinite(numbers).all()


def cards(data: st.DataObject, folder: Path) -> None:
    path, card = folder / "card.toml", data.draw(st.sampled_from(CARDS))
    path.write_text(tomli_w.dumps(spoiled(data, card)), encoding="utf-8")
    check_card(path)


def torn_cards(data: st.DataObject, folder: Path) -> None:
    path, card = folder / "card.toml", data.draw(st.sampled_from(CARDS))
    path.write_bytes(torn(data, tomli_w.dumps(card).encode()))
    check_card(path)


ASKED = flat(StudyConfig())
CHOICES = {name: ASKED.get(name, "") for name in SETTINGS}


def configs(data: st.DataObject, folder: Path) -> None:
    path, asked = folder / "run.toml", spoiled(data, CHOICES)
    path.write_text(tomli_w.dumps(asked), encoding="utf-8")
    check_config(path)


def torn_configs(data: st.DataObject, folder: Path) -> None:
    (folder / "run.toml").write_bytes(torn(data, tomli_w.dumps(ASKED).encode()))
    check_config(folder / "run.toml")


def check_config(path: Path) -> None:
    try:
        found = resolve({}, path)
    except (ValueError, OSError) as error:
        is_sentence(error)
    else:
        assert not found.model.trust_remote_code
        assert resolve(flat(found)) == found


@pytest.fixture(scope="module")
def reviews() -> Task:
    return generate_reviews(train=8, validation=8)


@pytest.fixture(scope="module")
def saved(folder, bert_folder, reviews) -> list[Path]:
    """A saved adapter of each of two methods."""
    asked, kinds = (
        StudyConfig().replace(model=str(bert_folder), groups=4),
        ("stochgrasp", "lora"),
    )
    for kind in kinds:
        save_adapter(new_adapter(asked, reviews, kind), folder / "saved" / kind)
    return [folder / "saved" / kind for kind in kinds]


def check_adapter(path: Path, model: Path, task: Task) -> None:
    try:
        load_adapter(path, str(model), task)
    except (ValueError, OSError) as error:
        is_sentence(error)


def adapter_configs(data, folder, saved, bert_folder, reviews) -> None:
    path = folder / "spoiled"
    shutil.copytree(data.draw(st.sampled_from(saved)), path, dirs_exist_ok=True)
    config = path / "adapter_config.json"
    if data.draw(st.booleans()):
        config.write_text(json.dumps(spoiled(data, json.loads(config.read_text()))))
    else:
        config.write_bytes(torn(data, config.read_bytes()))
    check_adapter(path, bert_folder, reviews)


def adapter_weights(data, folder, saved, bert_folder, reviews) -> None:
    path = folder / "spoiled"
    shutil.copytree(data.draw(st.sampled_from(saved)), path, dirs_exist_ok=True)
    weights = path / "adapter_model.safetensors"
    content = weights.read_bytes()
    # Mostly the header, with the position and the type of each tensor.
    size = 8 + int.from_bytes(content[:8], "little")
    part = size if data.draw(st.integers(0, 3)) else len(content)
    weights.write_bytes(torn(data, content[:part]) + content[part:])
    check_adapter(path, bert_folder, reviews)


# What checks the whole installation takes a minute, and has no argument to be spoiled.
TRIED = sorted(set(COMMANDS) - {"doctor"})
# The folder is given: one that cannot be made, so that a good request ends before any work.
GIVEN = {"--out", "--export", "--debug", "--help"}


# What an option may well be given.
NUMBERS = ["0", "0.1", "1", "3", "-1", "1.5", str(10**30), "nan", "inf", "1e308", "1e-320"]
WORDS = [
    "file", "..", "/", "/dev/null", "pcm-hermes-2", "ideal@2", "gaussian:0.1", "reviews", "e2e",
    "1d", "1e400y", "a,b", ",", "none", "grasp", "lora,full", "ray", "programmed", "-", "--",
    "sqlite:///x/y", "noise_weight=1:0", "[bold]", "\udcff", "all-linear", "(a+)+",
]  # fmt: skip


def command_lines(data, folder, saved, bert_folder) -> None:
    (folder / "file").touch()
    name = data.draw(st.sampled_from(TRIED))
    known = [o for p in load_command(name).params for o in p.opts if o[:2] == "--"]
    options = sorted({"--nothing", *known} - GIVEN)
    asked = [name]
    if "--model" in known:
        asked += ["--model", str(bert_folder)]
    if data.draw(st.integers(0, 3)) and name in ("drift", "deploy", "inspect", "report"):
        asked.append(str(saved[0]))
    for _ in range(data.draw(st.integers(0, 3))):
        odd = SCALARS.map(str).map(lambda word: word.replace("\0", ""))
        likely = st.sampled_from([*WORDS, str(saved[0])])
        asked.append(data.draw(st.sampled_from(options)))
        # A switch takes no word, which is then a surplus one.
        for _ in range(data.draw(st.sampled_from([0, 1, 1, 1, 1]))):
            asked.append(data.draw(st.one_of(st.sampled_from(NUMBERS), likely, odd)))
    works = "--out" in known
    ended(asked + (["--out", "file/out"] if works else []), {2} if works else {0, 2})


def ended(asked: list[str], statuses: set[int]) -> None:
    """Check that a command ends with one of these statuses, and an error is one sentence."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(asked)
    lines = err.getvalue().splitlines()
    assert status in statuses, (asked, lines)
    assert not any("Traceback" in line or "Unexpected" in line for line in lines), (asked, lines)
    if status:
        assert all(line.startswith(("error: ", "note: ")) for line in lines), (asked, lines)
        assert lines[-1].startswith("error: "), (asked, lines)
        is_sentence(lines[-1])


def test_every_command_is_tried():
    assert set(TRIED) | {"doctor"} == set(get_command(app).commands)


test_cards = tried(cards, 60, derandomize=True)
test_torn_cards = tried(torn_cards, 60, derandomize=True)
test_configs = tried(configs, 100, derandomize=True)
test_torn_configs = tried(torn_configs, 60, derandomize=True)
test_adapter_configs = tried(adapter_configs, 30, derandomize=True)
test_adapter_weights = tried(adapter_weights, 30, derandomize=True)
test_command_lines = tried(command_lines, 40, derandomize=True)

test_many_cards = pytest.mark.slow(tried(cards, 300))
test_many_torn_cards = pytest.mark.slow(tried(torn_cards, 300))
test_many_configs = pytest.mark.slow(tried(configs, 500))
test_many_torn_configs = pytest.mark.slow(tried(torn_configs, 300))
test_many_adapter_configs = pytest.mark.slow(tried(adapter_configs, 100))
test_many_adapter_weights = pytest.mark.slow(tried(adapter_weights, 100))
test_many_command_lines = pytest.mark.slow(tried(command_lines, 100))
