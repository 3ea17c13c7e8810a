#!/usr/bin/env bash
# Every comparison of this folder, one after the other, each with its dated page below results/ (root, and some 110 minutes on
# two cores; the machine should have nothing else to do). A failed one does not stop the others; it is named at the end.
#
#   bench/all.sh                 all
#   bench/all.sh fanout direct   some
set -uo pipefail
cd "$(dirname "$0")/.." || exit
all=(fanout latency direct cores storm ingest presence deflate memory tuning million two-million backplane crossing relay fleet_memory rolling)
failed=()
for name in "${@:-${all[@]}}"; do
    echo "== $name" >&2
    case "$name" in
    two-million) command=(bench/million.sh --scenario two-million --servers ringway) ;;
    *) command=("bench/$name.sh") ;;
    esac
    "${command[@]}" --raise-priority --save || failed+=("$name")
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
