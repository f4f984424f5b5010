"""A copy of a peer's environment that takes this CPU for one without AVX-512.

    python benchmarks/peers/as_avx2.py benchmarks/peers/.onnx    # makes benchmarks/peers/.onnx-avx2

onnxruntime and OpenVINO choose their kernels themselves, and have no switch for all of them: onnxruntime has
none, and OpenVINO 2026.4, whose own kernels do not ask oneDNN's ONEDNN_MAX_CPU_ISA, fails with it. But who
uses AVX-512 first asks with the instruction `xgetbv` whether the operating system keeps its registers. In the
copy that instruction is `mov $7, %al`: it keeps those of SSE and AVX alone. Everything else is a hard link.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ASKS = bytes.fromhex("0f01d0")  # xgetbv
AVX_ALONE = bytes.fromhex("b00790")  # mov $7, %al; nop
PAGE = re.compile(r"LOAD\s+0x(\w+) 0x(\w+) 0x\w+ 0x(\w+)")  # offset in the file, address, length


def offsets(library: Path) -> list[int]:
    """Where in the file the instruction stands: not every such three bytes are one."""
    shown = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", library],
        capture_output=True,
        text=True,
        check=True,
    )
    headers = subprocess.run(["readelf", "-lW", library], capture_output=True, text=True, check=True).stdout
    pages = [tuple(int(number, 16) for number in found) for found in PAGE.findall(headers)]
    addresses = [int(found, 16) for found in re.findall(r"^ *(\w+):\s+xgetbv", shown.stdout, re.MULTILINE)]
    return [
        address - start + offset
        for address in addresses
        for offset, start, length in pages
        if start <= address < start + length
    ]


def patch(library: Path) -> int:
    """Replaces the file, which others may have a link to, and counts what was changed."""
    code = bytearray(library.read_bytes())
    if ASKS not in code:
        return 0
    places = offsets(library)
    for place in places:
        assert code[place : place + 3] == ASKS, f"{library}: no xgetbv at {place:#x}"
        code[place : place + 3] = AVX_ALONE
    if places:
        changed = library.with_suffix(".changed")
        changed.write_bytes(code)
        shutil.copymode(library, changed)
        changed.replace(library)
    return len(places)


def main() -> None:
    folder = Path(sys.argv[1])
    copy, unfinished = (folder.with_name(folder.name + end) for end in ("-avx2", "-avx2-unfinished"))
    if copy.exists():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(folder, unfinished, symlinks=True, copy_function=os.link)
    for library in sorted(unfinished.rglob("*onnxruntime*.so*")) + sorted(unfinished.rglob("*openvino*.so*")):
        if library.is_file() and not library.is_symlink() and (count := patch(library)):
            print(f"{library.relative_to(unfinished)}: {count}", file=sys.stderr)
    unfinished.rename(copy)


if __name__ == "__main__":
    main()
