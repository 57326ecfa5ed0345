"""TOML files of unknown origin: what is refused, and that nothing sensible is."""

import os
import threading

import pytest
import tomli_w

from analog_grasp.devices.card import _folder
from analog_grasp.utils.io import read_toml


@pytest.fixture
def said(tmp_path):
    """The sentence with which a file of such content is refused."""

    def write(content: bytes) -> str:
        path = tmp_path / "mine.toml"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^The file mine ") as caught:
            read_toml(path, "The file mine")
        return str(caught.value)

    return write


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#" * (256 * 1024 + 1), "is larger than 256 KiB"),
        (b"#" * 4097, "has a line of more than 4096 bytes"),
        (b"a = " + b"[" * 33 + b"]" * 33, "nested too deeply"),
        (b"a = " + b"[" * 4000, "nested too deeply"),
        (b".".join([b"a"] * 34) + b" = 1", "nested too deeply"),
        (b"a = 0x1" + b"0" * 16, "integer of more than 64 bits"),
        (b"a = " + b"9" * 4000, "integer of more than 64 bits"),
        (b"a = [1, {b = 07:32:00}]", "the date or time 07:32:00"),
        (b'a = "\\u001b[31m"', "control characters"),
        (b'"\\u0000" = 1', "control characters"),
        (b"\xff", "not valid TOML: 'utf-8' codec"),
        (b"a = ", "not valid TOML: Invalid value"),
    ],
)
def test_what_is_refused(said, content, words):
    sentence = said(content)
    assert words in sentence
    assert len(sentence) < 400
    assert sentence.endswith(".")


def test_what_is_within_the_bounds_is_read(tmp_path):
    data = {
        "text": "Joshi, Le Gallo\u00a0et al. — 25 µS\n\tand a second line",
        "numbers": [2**63 - 1, -(2**63), 1e308, 0.1],
        "deep": {"a": {"b": [{"c": [[True]]}]}},
    }
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(data))
    assert read_toml(path, "mine") == data


def test_shipped_cards_are_far_within_the_bounds():
    for path in _folder().glob("*.toml"):
        content = path.read_bytes()
        assert len(content) < 16_384
        assert max(map(len, content.splitlines())) < 1024


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    refused = []

    def read():
        try:
            read_toml(tmp_path / "pipe.toml", "The pipe")
        except FileNotFoundError as error:
            refused.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(30)
    assert refused == ["The pipe does not exist: give the path of a TOML file."]
