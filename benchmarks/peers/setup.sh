#!/usr/bin/env bash
# A peer's environment and its model: benchmarks/peers/setup.sh llamacpp|openvino|onnx|kvpress [FOLDER]
# Prints, on stdout, the command for --peer. What is there already is not made again. PYTHON is one that has
# scope; the peers get the embedded model's weights, which scope has fetched, each in its own form. With ISA=avx2
# the command is that of a copy that finds no AVX-512 (as_avx2.py; llama.cpp's wheel has none).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
name="${1:-}"
folder="${2:-$here/.$name}"
scope_python="${PYTHON:-python3}"
# the build without CUDA where the package index has it, as in constraints.txt; on a GPU set TORCH=torch
torch="${TORCH:-torch==2.13.0}"

make_environment() {
    if [ ! -e "$folder/ready" ]; then
        "$scope_python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" psutil >&2
        touch "$folder/ready"
    fi
}

plain_folder() {
    (cd "$here/../.." && "$scope_python" -c \
        'from scope_cli.models.registry import find; print(find("smollm2-135m").ready().path)')
}

# into_model COMMAND... OUT: what the command writes to the folder OUT is the peer's model once it is whole
into_model() {
    if [ ! -e "$folder/model" ]; then
        rm -rf "$folder/unfinished"
        "$@" >&2
        mv "$folder/unfinished" "$folder/model"
    fi
}

# The folder whose Python is to run.
to_run() {
    if [ "${ISA:-}" = avx2 ]; then
        "$scope_python" "$here/as_avx2.py" "$folder" >&2
        echo "$folder-avx2"
    else
        echo "$folder"
    fi
}

case "$name" in
llamacpp)
    make_environment xllamacpp==2026.10.11549
    gguf="$(plain_folder)/source.gguf" # the Q4_1 file that the embedded model is made of
    [ -e "$gguf" ] || { echo "the embedded model came from the hub: there is no GGUF file" >&2; exit 1; }
    echo "$folder/bin/python $here/llamacpp.py --gguf $gguf"
    ;;
openvino)
    make_environment "$torch" openvino==2026.4.1 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 \
        optimum-intel==2.2.0 nncf==3.4.0
    # it comes with the others, is not needed, and fits no build of torch without CUDA
    "$folder/bin/python" -m pip uninstall --quiet --quiet --yes torchvision >&2
    into_model "$folder/bin/optimum-cli" export openvino --model "$(plain_folder)" \
        --task text-generation-with-past --weight-format int4 --group-size 32 --ratio 1.0 "$folder/unfinished"
    echo "$(to_run)/bin/python $here/openvino_paged.py --model $folder/model"
    ;;
onnx)
    make_environment "$torch" onnxruntime==1.31.1 onnxruntime-genai==0.18.0 onnx==1.23.2 onnx-ir==1.1.0 \
        transformers==5.23.0
    into_model "$folder/bin/python" -m onnxruntime_genai.models.builder -m "$(plain_folder)" \
        -o "$folder/unfinished" -p int4 -e cpu -c "$folder/cache" \
        --extra_options int4_accuracy_level=4 int4_block_size=32
    echo "$(to_run)/bin/python $here/onnx_genai.py --model $folder/model"
    ;;
kvpress)
    make_environment "$torch" kvpress==0.5.5
    echo "$folder/bin/python $here/decoding_press.py"
    ;;
*)
    echo "usage: benchmarks/peers/setup.sh llamacpp|openvino|onnx|kvpress [FOLDER]" >&2
    exit 2
    ;;
esac
