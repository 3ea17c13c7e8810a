#!/usr/bin/env bash
# Builds what publications across the engine need, installs Redis where it is missing, and measures them; arguments go to
# bench/relay.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen
command -v redis-server >/dev/null || tests/sdk/install.sh
BENCH_PROFILE="$profile" exec python3 bench/relay.py "$@"
