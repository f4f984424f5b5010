"""A wheel brings the native library of its machine: who installs it needs no compiler."""

import platform
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "scope_cli/native"
# so that nothing but the C library is asked for
WHOLE = ["-static-libstdc++", "-static-libgcc"] if sys.platform == "linux" else []


class NativeLibrary(BuildHookInterface):
    """Compiles it as the first use would; without a compiler the wheel is one for every machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # from the repository's own folder: built at first use
            return
        build = _build_module(Path(self.root) / NATIVE)
        file = Path(self.root, "build", "native", build.library_name())
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            build.build(file, build.all_sets(), WHOLE)
        except build.BuildError as error:
            self.app.display_warning(f"the wheel is without the native library: {error}")
            return
        build_data["force_include"][str(file)] = f"{NATIVE}/{file.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _build_module(folder: Path) -> ModuleType:
    """native/build.py alone: the package itself needs what is not installed here."""
    spec = spec_from_file_location("build", folder / "build.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform_tag() -> str:
    """Linux: with this machine's C library, or a newer one (PEP 600)."""
    name, version = platform.libc_ver()
    if sys.platform == "linux" and name == "glibc":
        major, minor = version.split(".")[:2]
        return f"manylinux_{major}_{minor}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
