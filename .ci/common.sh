# shellcheck shell=bash
# Sourced by the set-up scripts: one line a step, and errors that say what to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1;36m==>\033[0m %s\n' "$*"; }

die() {  # die PROBLEM REMEDY
    printf '\033[1;31merror:\033[0m %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 2
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else
        echo "neither root nor sudo: can't run $*" >&2
        return 126
    fi
}

apt_install() {  # apt_install PACKAGE...
    command -v apt-get >/dev/null || die "not a Debian or Ubuntu machine, so these can't be installed here: $*" \
        "install them with your package manager and run make again"
    mkdir -p .cache
    say "installing $* with apt-get (log: .cache/apt.log)"
    if ! { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive \
           apt-get install -y -q --no-install-recommends "$@"; } >.cache/apt.log 2>&1; then
        tail -n 5 .cache/apt.log >&2
        die "apt-get could not install: $*" \
            "as root, run: apt-get update && apt-get install --no-install-recommends $*"
    fi
}
