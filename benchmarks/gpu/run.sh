#!/usr/bin/env bash
# Everything that is to be known of a GPU, in ten stages under eight minutes in all:
#
#   benchmarks/gpu/run.sh OUT                 # on cuda, at Wan 2.1 1.3B's sizes
#   benchmarks/gpu/run.sh OUT                 # once more: only what failed
#   benchmarks/gpu/run.sh OUT --tiny cpu      # a dry run, on a machine without a GPU
#
# It installs nothing and fetches nothing: PYTHON (python3 if it is not set) needs torch 2.11 or later and what
# pyproject.toml lists; WHEELS, a folder of wheels, is installed without a network into OUT/site first. Each stage has a
# time limit of its own and leaves OUT/STAGE.json, or OUT/STAGE.err; OUT/results.jsonl has one line a stage.
set -uo pipefail
out=${1:?usage: run.sh OUT [--tiny] [DEVICE]}
shift
tiny=""
if [ "${1:-}" = "--tiny" ]; then tiny=1; shift; fi
device=${1:-cuda}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "${WHEELS:-}" ] && [ ! -d "$out/site" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" "$WHEELS"/*.whl || exit 2
fi
export PYTHONPATH="$root/src:$root/benchmarks/gpu${WHEELS:+:$out/site}" PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$out/triton}" ARL2_CACHE="${ARL2_CACHE:-$out/cache}"
if [ -n "$tiny" ]; then preset=tiny frames=81 height=32 width=32 base=8; else preset=wan-1.3b frames=921 height=480 width=832 base=96; fi
limit_factor=1
if [ "$device" = cpu ]; then limit_factor=4; fi  # nobody waits for a dry run

# stage NAME SECONDS COMMAND...: the command prints one JSON object as its last line.
stage() {
  local name=$1 limit=$(($2 * limit_factor)) started rc
  shift 2
  if [ -s "$out/$name.json" ]; then
    echo "$name: done before"
    return
  fi
  started=$(date +%s.%N)
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err"
  rc=$?
  "$python" "$root/benchmarks/gpu/note.py" "$out" "$name" "$rc" "$started"
}

arl2=("$python" -m arl2.cli.main)
own=("$python" "$root/benchmarks/gpu/stages.py" --preset "$preset" --device "$device" --codec-width "$base")
stage environment 20 "${arl2[@]}" env --json
stage gate 40 "${arl2[@]}" selfcheck --device "$device" --json
stage attention 30 "${own[@]}" attention
stage state 40 "${own[@]}" state
stage block 110 "${own[@]}" block
stage rollout 100 "${arl2[@]}" bench rollout --preset "$preset" --device "$device" --frames "$frames" --json
stage decode 35 "${arl2[@]}" bench decode --device "$device" --height "$height" --width "$width" --base-dim "$base" --json
stage blocks 45 "${own[@]}" blocks
stage snapshot 30 "${arl2[@]}" bench snapshot --preset "$preset" --device "$device" --json
stage framewise 30 "${own[@]}" framewise
cat "$out"/*.line > "$out/results.jsonl"
! grep -q '"rc": [1-9]' "$out/results.jsonl"
