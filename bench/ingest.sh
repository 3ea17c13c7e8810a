#!/usr/bin/env bash
# Builds what the ingest bench needs and measures it; arguments go to bench/ingest.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
BENCH_PROFILE="$profile" exec python3 bench/ingest.py "$@"
