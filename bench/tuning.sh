#!/usr/bin/env bash
# Builds and measures what each kernel setting does (root: it makes network namespaces); arguments go to bench/tuning.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ "$(id -u)" == 0 ]] || { echo "bench/tuning.sh makes network namespaces and needs root" >&2; exit 1; }
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
BENCH_PROFILE="$profile" exec python3 bench/tuning.py "$@"
