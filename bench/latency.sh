#!/usr/bin/env bash
# Builds what the comparison of latencies needs, installs peers that are missing, and runs it; arguments go to
# bench/latency.py. BENCH_PROFILE=fast builds quicker; CARGO_TARGET_DIR is respected.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${BENCH_PROFILE:-release}"
cargo build --profile "$profile" -p ringway -p ringway-loadgen -p ringway-floor
bench/peers/install.sh bun ws nats nchan
BENCH_PROFILE="$profile" exec python3 bench/latency.py "$@"
