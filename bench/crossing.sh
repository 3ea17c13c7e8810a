#!/usr/bin/env bash
# Builds what counting messages across the engine needs, installs Redis where it is missing, and counts; arguments go to
# bench/crossing.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
command -v redis-server >/dev/null || tests/sdk/install.sh
BENCH_PROFILE="$profile" exec python3 bench/crossing.py "$@"
