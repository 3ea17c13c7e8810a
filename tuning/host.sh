#!/usr/bin/env bash
# Tells how this host's kernel differs from what Ringway wants of it, or sets it so.
#
#   tuning/host.sh check    one line per setting that differs; exit code 1 if any does
#   tuning/host.sh apply    installs 99-ringway.conf below /etc/sysctl.d and loads it (root)
#
# What only a boot parameter or the service's unit can set is told, never changed.
set -euo pipefail
cd "$(dirname "$0")"
conf=99-ringway.conf
buckets=4194304
files=1048576

check() {
    local differs=0 name value now
    while IFS='=' read -r name value; do
        name="${name// /}"
        value="$(tr -s ' \t' ' ' <<<"${value# }")"
        if ! now="$(sysctl -n "$name" 2>/dev/null | tr -s ' \t' ' ')"; then
            echo "$name: this kernel has no such setting"
        elif [[ "$now" != "$value" ]]; then
            echo "$name: $now, wanted $value"
            differs=1
        fi
    done < <(grep -v '^ *\(#\|$\)' "$conf")
    # Negative: the namespace shares the host's table.
    now="$(sysctl -n net.ipv4.tcp_ehash_entries 2>/dev/null || echo 0)"
    if ((${now#-} < buckets)); then
        echo "TCP hash of this network namespace: ${now#-} buckets, wanted $buckets (boot parameter thash_entries=$buckets, or a namespace made behind apply)"
        differs=1
    fi
    now="$(ulimit -Hn)"
    if [[ "$now" != unlimited ]] && ((now < files)); then
        echo "open files of a process: at most $now, wanted $files (LimitNOFILE=$files), or one shard for each $now connections"
        differs=1
    fi
    return "$differs"
}

case "${1:-}" in
check) check ;;
apply)
    install -m 644 "$conf" /etc/sysctl.d/"$conf"
    sysctl -q -p /etc/sysctl.d/"$conf"
    check || true
    ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$(basename "$0")" >&2
    exit 2
    ;;
esac
