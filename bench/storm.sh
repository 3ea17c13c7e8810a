#!/usr/bin/env bash
# Builds what connect storms need, installs Bun where it is missing, and measures; arguments go to bench/storm.py.
# BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen -p ringway-floor
bench/peers/install.sh bun
BENCH_PROFILE="$profile" exec python3 bench/storm.py "$@"
