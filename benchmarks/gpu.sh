#!/usr/bin/env bash
# Fills the GPU table: two 8B models, budgets 512 to 4,096 against the full cache and DynamicCache, outputs to 32k.
#
#     benchmarks/gpu.sh [--dry-run] [MODEL ...]
#
# MODELs are hub names or folders; without any, Llama-3.1-8B-Instruct (its terms have to be accepted on the hub) and
# Qwen3-8B. One contender at a time is on the card: 24 GB are enough. Results lie in benchmarks/results/gpu/, what is
# there is not measured again, and the table comes last, on stdout.
#
#     PYTHON=python  DEVICE=cuda:0  PROMPT_TOKENS=4096  OUTPUTS="4096 16384 32768"  BUDGETS="512 1024 2048 4096"
#     LANES="1 8"  MORE=""  (options added to every `scope bench`)
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
if [ "${1:-}" = --dry-run ]; then
    dry_run=true
    shift
fi
models=("$@")
if [ ${#models[@]} -eq 0 ]; then
    models=(meta-llama/Llama-3.1-8B-Instruct Qwen/Qwen3-8B)
fi
python="${PYTHON:-python}"
device="${DEVICE:-cuda:0}"
prompt_tokens="${PROMPT_TOKENS:-4096}"
read -ra outputs <<<"${OUTPUTS:-4096 16384 32768}"
read -ra budgets <<<"${BUDGETS:-512 1024 2048 4096}"
read -ra lanes <<<"${LANES:-1 8}"
read -ra more <<<"${MORE:-}"
results=benchmarks/results/gpu

positions=""
for output in "${outputs[@]}"; do
    positions+="${positions:+,}$((prompt_tokens + output))"
done

if ! $dry_run; then
    mkdir -p "$results"
fi

files=()
for model in "${models[@]}"; do
    for lane in "${lanes[@]}"; do
        name="${model##*/}-$lane"
        files+=("$results/$name.json")
        if [ -e "$results/$name.json" ] && ! $dry_run; then
            continue
        fi
        contenders=(--peer dynamic --profile full)
        for budget in "${budgets[@]}"; do
            contenders+=(--profile "slide $budget=default decode.budget=$budget")
        done
        command=("$python" -m scope_cli bench --model "$model" --device "$device" --sequential
            --prompt-file examples/report.txt --text examples/logbook.txt --prompt-tokens "$prompt_tokens"
            --positions "$positions" --lanes "$lane" --rounds 5 --baseline dynamic
            "${contenders[@]}" --json "$results/$name.unfinished.json" --plot "$results/$name.png" "${more[@]}")
        if $dry_run; then
            printf '%q ' "${command[@]}"
            printf '\n'
            continue
        fi
        # a contender that does not fit the card is a row with its reason, and exit code 1
        "${command[@]}" || [ -e "$results/$name.unfinished.json" ]
        mv "$results/$name.unfinished.json" "$results/$name.json"
    done
done
if ! $dry_run; then
    "$python" benchmarks/performance.py --lines "${files[@]}"
fi
