#!/usr/bin/env bash
# Builds what the measurement of memory needs, and runs it; arguments go to bench/memory.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
BENCH_PROFILE="$profile" exec python3 bench/memory.py "$@"
