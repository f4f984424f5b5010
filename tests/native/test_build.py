"""Where the library comes from, and what is done where it cannot be had."""

import ctypes
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scope_cli.native import build
from scope_cli.native import library as loaded
from scope_cli.native.build import BuildError, compilers, library_file
from scope_cli.native.library import Library, library

pytestmark = pytest.mark.skipif(library() is None, reason="no native library on this machine")


AVX2 = ["avx2", "f16c", "fma", "sse2"]  # as the system names them
AVX512 = [*AVX2, "avx512_vnni", "avx512bw", "avx512dq", "avx512f", "avx512vl"]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of two files, built in no time."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int scope_one() { return 1; }\n')
    (folder / "two_avx2.cpp").write_text('#include "two.h"\nextern "C" int scope_two() { return TWO; }\n')
    (folder / "two.h").write_text("#define TWO 2\n")
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setattr(build, "_cpu_features", lambda: AVX2)
    monkeypatch.delenv(build.SWITCH, raising=False)
    return folder


def script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


def test_it_is_built_once_and_again_when_a_file_changes(sources, tmp_path):
    first = library_file(tmp_path / "cache")
    made = first.stat().st_mtime_ns
    assert library_file(tmp_path / "cache") == first and first.stat().st_mtime_ns == made
    (sources / "two.h").write_text("#define TWO 3\n")
    second = library_file(tmp_path / "cache")
    assert second != first
    assert sorted(path.name for path in first.parent.iterdir() if path.suffix == ".so") == sorted(
        [first.name, second.name]
    )


def test_building_is_foreseen(sources, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert build.will_build(cache)
    built = library_file(cache)
    assert not build.will_build(cache)
    assert build.will_build(tmp_path / "nowhere")
    (sources / build.library_name()).write_bytes(built.read_bytes())
    assert not build.will_build(tmp_path / "nowhere"), "it lies beside the package"
    (sources / build.library_name()).unlink()
    monkeypatch.setattr(build, "compilers", lambda: iter(()))
    assert not build.will_build(tmp_path / "nowhere"), "nothing can build it"


def test_one_beside_the_package_needs_no_compiler_and_no_cache(sources, tmp_path, monkeypatch):
    built = library_file(tmp_path / "cache")
    (sources / build.library_name()).write_bytes(built.read_bytes())
    monkeypatch.setattr(build, "compilers", lambda: iter(()))
    assert library_file(tmp_path / "nowhere") == sources / build.library_name()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("features", "chosen", "sets"),
    [
        (["sse2"], None, "plain"),
        (AVX2, None, "avx2"),
        (AVX512, None, "avx512"),
        (sorted({*AVX512} - {"avx512_vnni"}), None, "avx2"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "plain", "plain"),
        (AVX2, "avx512", "avx2"),
        (AVX2, "all", "plain-avx2-avx512"),
        ([], None, "plain-avx2-avx512"),  # the library asks the CPU when it is loaded
    ],
)
def test_what_is_built_is_what_this_cpu_uses(sources, tmp_path, monkeypatch, features, chosen, sets):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "_cpu_features", lambda: features)
    if chosen:
        monkeypatch.setenv(build.SWITCH, chosen)
    file = library_file(tmp_path / "cache")
    assert file.name.startswith(f"libscope-x86_64-{sets}-")
    assert hasattr(ctypes.CDLL(str(file)), "scope_two") == ("avx2" in sets.split("-"))


def test_other_machines_have_one_set(sources, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(build, "_cpu_features", lambda: ["asimd", "fp"])
    assert build.needed_sets() == build.all_sets() == ["plain"]


def test_cpus_that_share_a_folder_have_a_library_each(sources, tmp_path, monkeypatch):
    mine = library_file(tmp_path / "cache")
    monkeypatch.setattr(build, "_cpu_features", lambda: ["sse2"])
    assert build.will_build(tmp_path / "cache") and library_file(tmp_path / "cache") != mine
    monkeypatch.setattr(build, "_cpu_features", lambda: AVX2)
    assert library_file(tmp_path / "cache") == mine


def test_a_library_of_all_sets_serves_who_wants_one(sources, tmp_path, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "all")
    whole = library_file(tmp_path / "cache")
    for chosen in ("plain", "avx2"):
        monkeypatch.setenv(build.SWITCH, chosen)
        assert not build.will_build(tmp_path / "cache") and library_file(tmp_path / "cache") == whole


@pytest.mark.skipif(platform.machine() not in build.X86, reason="other machines have one set")
@pytest.mark.parametrize(
    "only", [pytest.param(only, marks=[] if only == "avx2" else pytest.mark.long) for only in build.SETS]
)
def test_each_set_is_a_library_by_itself(only, native, tmp_path, monkeypatch):
    quick = """
        import subprocess, sys
        argv = [arg for arg in sys.argv[1:] if arg != "-O3"]
        sys.exit(subprocess.call(["c++", "-O0", *argv]))
    """
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "quick", quick)))
    build.build(tmp_path / "alone.so", [only], ["-Wl,-z,defs"])
    if only in native.all_instructions():
        alone = Library(tmp_path / "alone.so")
        assert alone.instructions == only and {alone.use(name) for name in build.SETS} == {only}


def test_without_a_compiler_the_reason_says_what_helps(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(
        BuildError, match="no C\\+\\+ compiler: install g\\+\\+ or clang\\+\\+, or `pip install"
    ):
        library_file(tmp_path / "cache")


def test_compilers_are_tried_in_turn(sources, tmp_path, monkeypatch):
    broken = script(tmp_path / "bin" / "broken", "print('x.cpp: error: no such flag'); raise SystemExit(1)")
    monkeypatch.setenv("CXX", f"{broken} -m64")
    names = [command[0] for command in compilers()]
    assert names[0] == str(broken) and len(names) > 1
    assert library_file(tmp_path / "cache").is_file()


def test_what_the_compiler_says_is_the_reason(sources, tmp_path):
    (sources / "one.cpp").write_text("int broken(\n")
    with pytest.raises(BuildError) as raised:
        library_file(tmp_path / "cache")
    assert "one.cpp" in str(raised.value) and "error" in str(raised.value) and "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "cache").rglob("building-*")] == []


def test_ziglang_is_the_last_resort(monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda name: name == "ziglang")
    assert list(compilers())[-1] == [sys.executable, "-m", "ziglang", "c++"]


def test_a_cache_that_cannot_be_written_is_a_reason(sources, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BuildError, match="cannot be written"):
        library_file(tmp_path / "cache")


def test_where_the_cache_cannot_be_written_it_is_built_for_this_process(sources, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert build.is_kept(cache) and build.is_kept(tmp_path)
    cache.write_text("a file")
    assert not build.is_kept(cache)
    monkeypatch.setenv("SCOPE_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loaded, "Library", lambda file: ctypes.CDLL(str(file)))
    assert loaded._found.__wrapped__().scope_one() == 1
    assert not list(tmp_path.glob("scope-native-*")) and cache.read_text() == "a file"


def build_into(cache, folder, queue):
    build.FOLDER = folder
    queue.put(str(library_file(cache)))


def test_several_processes_at_once_build_once(sources, tmp_path, monkeypatch):
    log = tmp_path / "log"
    slow = f"""
        import subprocess, sys, time
        open({str(log)!r}, "a").write("x")
        time.sleep(0.2)
        sys.exit(subprocess.call(["c++", *sys.argv[1:]]))
    """
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "slow", slow)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=build_into, args=(tmp_path / "cache", sources, queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    files = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(files) == 1 and log.read_text() == "xxx"  # two files and the linking


def test_what_a_killed_build_left_is_removed_and_nothing_of_it_used(sources, tmp_path):
    forever = script(tmp_path / "bin" / "forever", "import time; time.sleep(100)")
    code = f"""
        from pathlib import Path
        from scope_cli.native import build
        build.FOLDER = Path({str(sources)!r})
        build._cpu_features = lambda: {AVX2}
        build.library_file(Path({str(tmp_path / "cache")!r}))
    """
    env = {**os.environ, "CXX": str(forever)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env, start_new_session=True)
    while not list((tmp_path / "cache").rglob("building-*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    assert list((tmp_path / "cache").rglob("building-*"))
    file = library_file(tmp_path / "cache")
    assert file.is_file() and not list((tmp_path / "cache").rglob("building-*"))


def test_threads_of_one_process_share_a_build(sources, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        files = set(pool.map(library_file, [tmp_path / "cache"] * 3))
    assert len(files) == 1


def asked(code, **env):
    code = f"from scope_cli.native import library as it; {code}"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_the_switch_chooses_the_instructions_and_turns_it_off():
    said = asked("print(it.library().instructions)", SCOPE_NATIVE="plain")
    assert said == "plain"
    assert asked("print(it.library(), it.why_not())", SCOPE_NATIVE="off") == "None None"


def test_a_library_that_does_not_load_is_none_and_a_reason(tmp_path):
    file = tmp_path / "native" / build._cpu_kind() / build.library_name(build.needed_sets())
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a library")
    said = asked("print(it.library(), it.why_not())", SCOPE_CACHE=str(tmp_path))
    assert said.startswith("None ") and str(file) in said
