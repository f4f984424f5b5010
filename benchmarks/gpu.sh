#!/usr/bin/env bash
# On a machine with a GPU: the tests that need one, then speed and memory of four models with random weights.
#
#     benchmarks/gpu.sh [--dry-run | --tiny] [PART ...]
#
# A PART is `tests`; a model: a hub name, a folder, or random:NAME, which needs no network, since its weights are
# drawn on the card; or `kvpress=MODEL`: kvpress's press with that model, in an environment of its own, which
# peers/setup.sh makes from the package index. Without one: all of them. Each takes at most eight minutes; the
# same command goes on where it stopped. Rows lie in benchmarks/results/gpu/ as they are measured; the table comes last, on stdout, and the
# plot in docs/images/gpu.png. --tiny does all of it on the CPU with a tiny model, into build/gpu: a rehearsal.
#
#     PYTHON=python  DEVICE=cuda:0  MINUTES=8  PROMPT_TOKENS=4096
#     LANES="1 8 32"  POSITIONS="4096 8192 16384 32768 65536"
set -euo pipefail
cd "$(dirname "$0")/.."

run=()
results=benchmarks/results/gpu
plot=docs/images/gpu.png
all=(tests random:llama-3.1-8b random:qwen3-8b random:mistral-7b random:gemma-3-12b kvpress=random:llama-3.1-8b)
case "${1:-}" in
--dry-run)
    run=(echo)
    shift
    ;;
--tiny)
    results=build/gpu plot=build/gpu/gpu.png all=(tests random:tiny kvpress=random:tiny)
    DEVICE=cpu LANES="1 8" POSITIONS="600 900" PROMPT_TOKENS=128
    shift
    ;;
*)
    export TORCH="${TORCH:-torch}" # of kvpress's environment: CUDA's build
    ;;
esac
if [ $# -eq 0 ]; then
    set -- "${all[@]}"
fi
python="${PYTHON:-python}"
read -ra lanes <<<"${LANES:-1 8 32}"
read -ra positions <<<"${POSITIONS:-4096 8192 16384 32768 65536}"

failed=()
for part in "$@"; do
    if [ "$part" = tests ]; then
        "${run[@]}" "$python" -m pytest -q -m gpu tests/test_gpu.py tests/models/test_slot_attention.py \
            tests/engine/test_roofline.py || failed+=(tests)
    else
        peer=()
        if [ "${part#kvpress=}" != "$part" ]; then
            if [ ${#run[@]} -gt 0 ]; then
                peer=(--kvpress KVPRESS)
            elif command="$(PYTHON="$python" benchmarks/peers/setup.sh kvpress)"; then
                peer=(--kvpress "$command")
            else
                failed+=(kvpress)
                continue
            fi
        fi
        "${run[@]}" "$python" benchmarks/gpu.py "${part#kvpress=}" "${peer[@]}" \
            --device "${DEVICE:-cuda:0}" --minutes "${MINUTES:-8}" --lanes "${lanes[@]}" --positions "${positions[@]}" --prompt "${PROMPT_TOKENS:-4096}" --results "$results"
    fi
done
"${run[@]}" "$python" benchmarks/gpu.py --table --results "$results" --plot "$plot"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed, see above: ${failed[*]}" >&2
    exit 1
fi
