#!/usr/bin/env bash
# Installs what the tests need: Node, Python's venv, Chromium, curl, shellcheck, HAProxy, nginx, Redis and libfaketime from
# Debian when they are missing, the published SDKs from npm into node_modules and from PyPI into .venv. Quick when everything is there.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '%s\n' "install: $*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "needs root or sudo for: $*" >&2
        exit 1
    fi
}

node_is_new_enough() {
    command -v node >/dev/null && command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ]
}

# python3 alone does not tell whether a venv gets its pip: Debian ships that apart.
venv_works() {
    command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null
}

packages=()
node_is_new_enough || packages+=(nodejs npm)
venv_works || packages+=(python3 python3-venv)
[ -n "${CHROMIUM:-}" ] || command -v chromium >/dev/null || packages+=(chromium)
command -v curl >/dev/null || packages+=(curl)
command -v shellcheck >/dev/null || packages+=(shellcheck)
# None of them is to run as a service for this; their programs may stand where only root's PATH looks.
for program in haproxy nginx redis-server redis-sentinel; do
    command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || packages+=("$program")
done
command -v redis-cli >/dev/null || packages+=(redis-tools)
compgen -G "/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null || packages+=(libfaketime)
if [ ${#packages[@]} -gt 0 ]; then
    say "from Debian: ${packages[*]}"
    command -v apt-get >/dev/null || { say "no apt-get here; install by hand: ${packages[*]}" >&2; exit 1; }
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
node_is_new_enough || { say "Node 18 or newer is needed, found $(node --version 2>/dev/null || echo none)" >&2; exit 1; }

if ! cmp -s package-lock.json node_modules/.installed; then
    say "from npm: $(node -p 'Object.entries(require("./package.json").dependencies).map((d) => d.join(" ")).join(", ")')"
    npm ci --no-audit --no-fund --ignore-scripts --loglevel=error
    cp package-lock.json node_modules/.installed
fi

if ! cmp -s requirements.txt .venv/installed; then
    say "from PyPI: $(grep -v '^#' requirements.txt | tr '\n' ' ')"
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt .venv/installed
fi
say "ready: node $(node --version), $(.venv/bin/python --version), centrifuge $(node -p 'require("./package.json").dependencies.centrifuge')"
