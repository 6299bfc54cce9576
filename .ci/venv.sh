#!/usr/bin/env bash
# The virtual environment .venv, from the locks in conf/requirements. make runs this when a lock is newer than
# .venv/.installed; KLONG_PYTHON names another interpreter.
source "$(dirname "$0")/common.sh"

TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

supported() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${KLONG_PYTHON:-python3.11 python3.12 python3}; do
        if supported "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

make_venv() {
    local python version
    if ! python=$(find_python); then
        [ -z "${KLONG_PYTHON:-}" ] || die "KLONG_PYTHON=$KLONG_PYTHON is not Python 3.11 or 3.12" "name one that is"
        apt_install python3.11 python3.11-venv
        python=python3.11
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
        apt_install "python$version-venv"
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}

pip_install() { .venv/bin/python -m pip --disable-pip-version-check install -q --no-compile "$@"; }

install_torch() {
    if .venv/bin/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null; then
        return
    fi
    say "installing torch $TORCH (CPU build)"
    pip_install --no-deps "torch==$TORCH+cpu" 2>>.cache/pip.log && return
    pip_install --no-deps --timeout 15 --retries 1 --index-url "$TORCH_CPU_INDEX" "torch==$TORCH" \
        2>>.cache/pip.log && return
    # PyPI's own build works on a CPU too, but needs its CUDA libraries to be imported: several GB.
    say "no CPU build found; installing PyPI's torch $TORCH with its CUDA libraries (about 3 GB)"
    pip_install "torch==$TORCH" || die "torch $TORCH could not be installed (earlier tries: .cache/pip.log)" \
        "check that pip reaches a package index: .venv/bin/python -m pip download --no-deps torch==$TORCH"
}

mkdir -p .cache
: >.cache/pip.log
supported .venv/bin/python || make_venv
say "installing $(grep -c == conf/requirements/cpu.txt) locked packages (first time: a few minutes)"
pip_install --no-deps -r conf/requirements/cpu.txt -r conf/requirements/test.txt \
    || die "a locked package could not be installed" "check the network, then run make again; it goes on from here"
install_torch
# Editable: vLLM finds the weight-transfer plugin by its entry point, and conf/ stays where it is.
pip_install --no-deps --no-build-isolation -e . || die "klong_rl itself could not be installed" "see the lines above"
# pip compiles one file after another; all cores at once is faster. Some packages ship files for other Pythons.
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
touch .venv/.installed
