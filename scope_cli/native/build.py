"""The C++ files of this folder in, a library in the cache folder out: built once, in some seconds.

By the machine's own compiler, else by the one in the `ziglang` package; a library that a wheel brings beside
these files needs neither. What is built at first use holds one set of instructions, the best of this CPU; a
wheel holds all of them, and chooses when it is loaded. A file's name ends in the set that it is for.
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
SETS = {"plain": [], "avx2": AVX2, "avx512": AVX512}  # of instructions, the best ones last
WAITS = ["-std=c++20"]  # for a number to change; the headers of that standard take longer to read
FLAGS_OF = {**SETS, "team": WAITS}  # by the end of a file's name
X86 = ("x86_64", "AMD64")
SWITCH = "SCOPE_NATIVE"  # off, a set, or all
PATIENCE_S = 300.0  # for a compiler, and for another process that is building
HALF_MADE = "building-"


class BuildError(Exception):
    """No library, and why: one line."""


class NotKept(BuildError):
    """The cache folder takes no library."""


def will_build(cache: Path) -> bool:
    """Would `library_file` begin to compile? It takes some seconds, on a busy machine minutes."""
    return not _is_there(cache) and next(compilers(), None) is not None


def is_kept(cache: Path) -> bool:
    """Can what is built be written into the cache folder, as far as can be said without trying?"""
    there = next(one for one in [cache / "native", *(cache / "native").parents] if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def expected(cache: Path) -> bool:
    """Will there be a library, as far as can be said without building one?"""
    return os.environ.get(SWITCH) != "off" and (next(compilers(), None) is not None or _is_there(cache))


def _is_there(cache: Path) -> bool:
    return any(file.is_file() for file in _places(cache))


def _places(cache: Path) -> list[Path]:
    """Where a library may lie that can be used here; the last one is built where there is none."""
    folder, digest = cache / "native" / _cpu_kind(), _digest()
    whole, own = _name(all_sets(), digest), _name(needed_sets(), digest)
    return [FOLDER / whole, folder / whole, folder / own]


def library_file(cache: Path) -> Path:
    """The library of exactly these sources, built now where there is none.

    Raises BuildError; NotKept is one.
    """
    places = _places(cache)
    file, folder = places[-1], places[-1].parent
    if there := next(filter(Path.is_file, places), None):
        return there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=PATIENCE_S):
            if not file.is_file():
                _sweep(folder)
                with TemporaryDirectory(prefix=HALF_MADE, dir=folder) as own:
                    build(Path(own) / file.name, needed_sets())
                    (Path(own) / file.name).replace(file)
    except Timeout as error:
        raise BuildError(f"another process has been building in {folder} for {PATIENCE_S:.0f} s") from error
    except OSError as error:
        raise NotKept(f"{folder} cannot be written: {error.strerror or error}") from error
    return file


def needed_sets() -> list[str]:
    """The best set of this CPU, or the one that $SCOPE_NATIVE names; all where nobody can say."""
    chosen, features = os.environ.get(SWITCH), _cpu_features()
    if chosen == "all" or not features:
        return all_sets()
    here = {f"-m{name.replace('_', '')}" for name in features}  # the system writes avx512_vnni
    there = [name for name in all_sets() if here.issuperset(SETS[name])]
    return [chosen if chosen in there else there[-1]]


def all_sets() -> list[str]:
    """That this kind of machine can have."""
    return list(SETS) if platform.machine() in X86 else ["plain"]


def build(file: Path, sets: Sequence[str], linking: Sequence[str] = ()) -> None:
    """Compile and link, with the first compiler that can. Raises BuildError."""
    failed = []
    for compiler in compilers():
        try:
            return _build_with(compiler, file, sets, linking)
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


def _build_with(compiler: Sequence[str], file: Path, sets: Sequence[str], linking: Sequence[str]) -> None:
    """All files at once: each takes seconds, and most machines have several cores."""
    objects, running = [], []
    only = [f"-DSCOPE_ONLY={sets[0]}"] if len(sets) == 1 else []
    for source in sources(sets):
        objects.append(str(file.with_name(f"{source.stem}.o")))
        own = next((flags for end, flags in FLAGS_OF.items() if source.stem.endswith(end)), [])
        running.append(_start([*compiler, *FLAGS, *only, *own, "-c", str(source), "-o", objects[-1]]))
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


def sources(sets: Sequence[str]) -> list[Path]:
    """What is compiled for these sets of instructions."""
    left_out = tuple(f"_{name}" for name in SETS if name not in sets)
    return [file for file in sorted(FOLDER.glob("*.cpp")) if not file.stem.endswith(left_out)]


def library_name(sets: Sequence[str] | None = None) -> str:
    """Of these sources, on this kind of machine, with these sets of instructions; None: with all."""
    return _name(sets or all_sets(), _digest())


def _name(sets: Sequence[str], digest: str) -> str:
    return f"libscope-{platform.machine()}-{'-'.join(sets)}-{digest}.so"


def _digest() -> str:
    """Of all that the library is made of."""
    digest = sha256(repr([FLAGS, FLAGS_OF]).encode())
    for file in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), *FOLDER.glob("*.inl")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cpu_kind() -> str:
    """Of the machines that can share a library: a compiler may use whatever it finds on its own."""
    about = [platform.machine(), *platform.libc_ver(), *_cpu_features()]
    return sha256(repr(about).encode()).hexdigest()[:12]


def _cpu_features() -> list[str]:
    """As the system names them; nothing where it does not."""
    with suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return sorted(found[1].split()) if found else []
    return []


def _sweep(folder: Path) -> None:
    """Remove what killed builds have left; the lock is ours."""
    for left in folder.glob(f"{HALF_MADE}*"):
        shutil.rmtree(left, ignore_errors=True)
