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

pip_install() {
    .venv/bin/python -m pip --disable-pip-version-check install -q --no-compile "$@" >>.cache/pip.log 2>&1
}

pip_failed() {  # pip_failed WHAT
    grep -v ^WARNING .cache/pip.log | tail -n 5 >&2
    die "could not install $1 (log: .cache/pip.log)" \
        "check that pip reaches a package index (pip config list), then run make again; it goes on from here"
}

has_torch() {
    .venv/bin/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null
}

install_torch() {
    has_torch && return
    say "installing torch $TORCH, CPU build (190 MB)"
    pip_install --no-deps "torch==$TORCH+cpu" && return
    pip_install --no-deps --timeout 15 --retries 1 --index-url "$TORCH_CPU_INDEX" "torch==$TORCH" && return
    # PyPI's own build works on a CPU too, but can't be imported without its CUDA libraries.
    say "no CPU build is to be had here; installing PyPI's torch $TORCH with its CUDA libraries (several GB)"
    pip_install "torch==$TORCH" || pip_failed "torch $TORCH"
}

mkdir -p .cache
: >.cache/pip.log
supported .venv/bin/python || make_venv
say "installing $(cat conf/requirements/{cpu,test}.txt | grep -c ==) locked packages (the first time: a minute or more)"
pip_install --no-deps -r conf/requirements/cpu.txt -r conf/requirements/test.txt || pip_failed "the locked packages"
install_torch
# Editable: vLLM finds the weight-transfer plugin by its entry point, and conf/ stays where it is.
pip_install --no-deps --no-build-isolation -e . || pip_failed "klong_rl itself"
# pip compiles one file after another; all cores at once is faster. Some packages ship files for other Pythons.
say "compiling"
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
touch .venv/.installed
