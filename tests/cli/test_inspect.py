"""What trained adapters have learned, as the command shows it."""

import pytest


@pytest.fixture(scope="module")
def adapters(finished):
    return [finished / "adapters" / name for name in ("grasp", "stochgrasp")]


def test_trained_adapters_are_shown_side_by_side(ag, adapters, tmp_path):
    out = tmp_path / "shown"
    ended = ag("inspect", *adapters, "--out", out)
    assert (ended.status, ended.err) == (0, "")
    for text in ("grasp, K = 4", "stochgrasp, K = 4", "sigma of the shift", "attention.self.query"):
        assert text in ended.out
    assert ended.out.count("all layers ") >= 4
    written = {line.removeprefix("wrote ") for line in ended.out.splitlines() if "wrote " in line}
    assert written == {str(path) for path in out.iterdir()}
    assert len(written) == 5


def test_nothing_is_written_unless_asked(ag, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ag("inspect", adapters[0]).status == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_without_an_adapter_is_refused(refused, tmp_path):
    assert "holds no adapter" in refused("inspect", tmp_path)
