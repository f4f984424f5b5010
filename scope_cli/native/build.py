"""The C++ files of this folder in, a library in the cache folder out: built once, in some seconds.

By the machine's own compiler, else by the one in the `ziglang` package; a library that a wheel brings beside
these files needs neither. A file's name says which instructions it is compiled for: `_avx2`, `_avx512`.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
WAITS = ["-std=c++20"]  # for a number to change; the headers of that standard take longer to read
FLAGS_OF = {"_avx2": AVX2, "_avx512": AVX512, "team": WAITS}  # by the end of a file's name
X86 = ("x86_64", "AMD64")
SWITCH = "SCOPE_NATIVE"
PATIENCE_S = 300.0  # for a compiler, and for another process that is building
HALF_MADE = "building-"


class BuildError(Exception):
    """No library, and why: one line."""


def will_build(cache: Path) -> bool:
    """Would `library_file` begin to compile? It takes some seconds, on a busy machine minutes."""
    return not _is_there(cache) and next(compilers(), None) is not None


def expected(cache: Path) -> bool:
    """Will there be a library, as far as can be said without building one?"""
    return os.environ.get(SWITCH) != "off" and (next(compilers(), None) is not None or _is_there(cache))


def _is_there(cache: Path) -> bool:
    name = library_name()
    return (FOLDER / name).is_file() or (cache / "native" / _cpu_kind() / name).is_file()


def library_file(cache: Path) -> Path:
    """The library of exactly these sources, built now where there is none. Raises BuildError."""
    name = library_name()
    if (brought := FOLDER / name).is_file():
        return brought
    folder = cache / "native" / _cpu_kind()
    file = folder / name
    if file.is_file():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=PATIENCE_S):
            if not file.is_file():
                _sweep(folder)
                with TemporaryDirectory(prefix=HALF_MADE, dir=folder) as own:
                    build(Path(own) / name)
                    (Path(own) / name).replace(file)
    except Timeout as error:
        raise BuildError(f"another process has been building in {folder} for {PATIENCE_S:.0f} s") from error
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror or error}") from error
    return file


def build(file: Path, linking: Sequence[str] = ()) -> None:
    """Compile and link, with the first compiler that can. Raises BuildError."""
    failed = []
    for compiler in compilers():
        try:
            return _build_with(compiler, file, linking)
        except BuildError as error:
            failed.append(str(error))
    if not failed:
        raise BuildError("there is no C++ compiler: install g++ or clang++, or `pip install ziglang`")
    raise BuildError(failed[0])


def compilers() -> Iterator[list[str]]:
    """$CXX, the usual names, ziglang's: those that are there."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen, ["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            yield command
    if find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "c++"]


def _build_with(compiler: Sequence[str], file: Path, linking: Sequence[str]) -> None:
    """All files at once: each takes seconds, and most machines have several cores."""
    objects, running = [], []
    for source in sources():
        objects.append(str(file.with_name(f"{source.stem}.o")))
        own = next((flags for end, flags in FLAGS_OF.items() if source.stem.endswith(end)), [])
        running.append(_start([*compiler, *FLAGS, *own, "-c", str(source), "-o", objects[-1]]))
    said = [_end(process) for process in running]
    if wrong := next(filter(None, said), None):
        raise BuildError(f"{shlex.join(compiler)}: {wrong}")
    if wrong := _end(_start([*compiler, "-shared", "-pthread", *linking, *objects, "-o", str(file)])):
        raise BuildError(f"{shlex.join(compiler)}: {wrong}")


def _start(command: list[str]) -> "subprocess.Popen[str] | OSError":
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        return error


def _end(process: "subprocess.Popen[str] | OSError") -> str | None:
    """What a compiler said that failed, in one line."""
    if isinstance(process, OSError):
        return process.strerror or str(process)
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"took more than {PATIENCE_S:.0f} s"
    if process.returncode == 0:
        return None
    lines = said.strip().splitlines() or [f"exit code {process.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def sources() -> list[Path]:
    """What this kind of machine compiles."""
    files = sorted(FOLDER.glob("*.cpp"))
    return [f for f in files if platform.machine() in X86 or "_avx" not in f.stem]


def library_name() -> str:
    """Of these sources, on this kind of machine."""
    return f"libscope-{platform.machine()}-{_digest()}.so"


def _digest() -> str:
    """Of all that the library is made of."""
    digest = sha256(repr([FLAGS, FLAGS_OF]).encode())
    for file in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), *FOLDER.glob("*.inl")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cpu_kind() -> str:
    """Of the machines that can share a library: a compiler may use whatever it finds on its own."""
    about = [platform.machine(), *platform.libc_ver()]
    with suppress(OSError):
        features = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        about += sorted(features[1].split()) if features else []
    return sha256(repr(about).encode()).hexdigest()[:12]


def _sweep(folder: Path) -> None:
    """Remove what killed builds have left; the lock is ours."""
    for left in folder.glob(f"{HALF_MADE}*"):
        shutil.rmtree(left, ignore_errors=True)
