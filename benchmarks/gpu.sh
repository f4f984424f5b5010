#!/usr/bin/env bash
# On a machine with a GPU: the tests that need one, then speed and memory of four models with random weights.
#
#     benchmarks/gpu.sh [--dry-run] [MODEL ...]
#
# A MODEL is a hub name, a folder, or random:NAME, which needs no network: its weights are drawn on the card. Each
# model takes at most eight minutes; the same command goes on where it stopped. Rows lie in benchmarks/results/gpu/
# as they are measured; the table comes last, on stdout, and the plot in docs/images/gpu.png.
#
#     PYTHON=python  DEVICE=cuda:0  MINUTES=8  LANES="1 8 32"  POSITIONS="8192 32768 65536"  PROMPT_TOKENS=4096
set -euo pipefail
cd "$(dirname "$0")/.."

run=()
if [ "${1:-}" = --dry-run ]; then
    run=(echo)
    shift
fi
models=("$@")
if [ ${#models[@]} -eq 0 ]; then
    models=(random:llama-3.1-8b random:qwen3-8b random:mistral-7b random:gemma-3-12b)
fi
python="${PYTHON:-python}"
read -ra lanes <<<"${LANES:-1 8 32}"
read -ra positions <<<"${POSITIONS:-8192 32768 65536}"

"${run[@]}" "$python" -m pytest -q -m gpu
for model in "${models[@]}"; do
    "${run[@]}" "$python" benchmarks/gpu.py "$model" --device "${DEVICE:-cuda:0}" --minutes "${MINUTES:-8}" \
        --lanes "${lanes[@]}" --positions "${positions[@]}" --prompt "${PROMPT_TOKENS:-4096}"
done
"${run[@]}" "$python" benchmarks/gpu.py --table --plot docs/images/gpu.png
