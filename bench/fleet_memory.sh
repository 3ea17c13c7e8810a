#!/usr/bin/env bash
# Builds what the memory of channels in a fleet needs, installs Redis where it is missing, and measures it; arguments go to
# bench/fleet_memory.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
command -v redis-server >/dev/null || tests/sdk/install.sh
BENCH_PROFILE="$profile" exec python3 bench/fleet_memory.py "$@"
