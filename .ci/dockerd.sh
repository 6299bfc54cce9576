#!/usr/bin/env bash
# A Docker daemon that answers: the one that runs, or the system's service, or one started here in the background.
source "$(dirname "$0")/common.sh"

WAIT_S=60
LOG=.cache/dockerd.log

answers() { docker ps -q >/dev/null 2>&1; }

wait_for_daemon() {  # wait_for_daemon [PID]: until it answers, PID ends, or WAIT_S have passed
    local waited
    for ((waited = 0; waited < WAIT_S; waited++)); do
        answers && return
        [ -z "${1:-}" ] || kill -0 "$1" 2>/dev/null || return 1
        sleep 1
    done
    return 1
}

check_permission() {
    if [[ $(docker ps -q 2>&1) == *"permission denied"* ]]; then
        die "the Docker daemon runs, but $(id -un) may not use it" \
            "run: sudo usermod -aG docker $(id -un) && newgrp docker   and then make again"
    fi
}

start_service() {
    { [ -d /run/systemd/system ] && as_root systemctl start docker; } >/dev/null 2>&1 \
        || as_root service docker start >/dev/null 2>&1
}

start_daemon() {  # start_daemon [FLAG...]: in a session of its own, so that Ctrl-C on make doesn't reach it
    as_root setsid nohup dockerd "$@" >>"$LOG" 2>&1 </dev/null &
    wait_for_daemon $!
}

answers && exit 0
check_permission
[ -z "${DOCKER_HOST:-}" ] || die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST"
mkdir -p .cache
say "starting the Docker daemon (log: $LOG)"
if start_service && wait_for_daemon; then exit 0; fi
check_permission
start_daemon && exit 0
# Inside a container the daemon often may not touch the firewall; sandboxes have no network, so they don't need it.
say "starting it again without a bridge network"
start_daemon --iptables=false --ip6tables=false --bridge=none && exit 0
tail -n 5 "$LOG" >&2
die "no Docker daemon answered within $WAIT_S s" \
    "start one (sudo dockerd) on a machine that allows it, or set DOCKER_HOST to one that runs; log: $LOG"
