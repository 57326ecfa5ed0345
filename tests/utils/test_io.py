"""TOML files from untrusted sources, and atomic writes."""

import os
import threading

import pytest
import tomli_w

from analog_grasp.utils.io import read_toml, write_atomically


@pytest.fixture
def error_of(tmp_path):
    """Return the sentence of the error that a file of some content raises."""

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
def test_files_beyond_the_limits_are_errors(error_of, content, words):
    sentence = error_of(content)
    assert words in sentence
    assert len(sentence) < 400
    assert sentence.endswith(".")


def test_a_file_within_the_limits_is_read(tmp_path):
    data = {
        "text": "Joshi, Le Gallo\u00a0et al. — 25 µS\n\tand a second line",
        "numbers": [2**63 - 1, -(2**63), 1e308, 0.1],
        "deep": {"a": {"b": [{"c": [[True]]}]}},
    }
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(data))
    assert read_toml(path, "mine") == data


def test_a_pipe_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    errors = []

    def read():
        try:
            read_toml(tmp_path / "pipe.toml", "The pipe")
        except FileNotFoundError as error:
            errors.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(30)
    assert errors == ["The pipe does not exist: give the path of a TOML file."]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
