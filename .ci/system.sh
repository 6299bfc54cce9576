#!/usr/bin/env bash
# System packages: Redis, Docker, mmdebstrap (it makes the sandbox image), libnuma (vLLM's CPU backend loads it).
# Looks at the machine each time, so a second run installs nothing and takes no time.
source "$(dirname "$0")/common.sh"

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
# A docker command alone is only a client: what it talks to must run already, or be DOCKER_HOST's, or be installed.
command -v dockerd >/dev/null || [ -n "${DOCKER_HOST:-}" ] || docker ps -q >/dev/null 2>&1 || missing+=(docker.io)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
ldconfig -p 2>/dev/null | grep -q 'libnuma\.so\.1' || /sbin/ldconfig -p 2>/dev/null | grep -q 'libnuma\.so\.1' \
    || missing+=(libnuma1)
for program in "$@"; do  # system.sh PROGRAM...: more of them, each of the package of its name
    command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"

# From Debian 13 on the docker command is a package of its own.
command -v docker >/dev/null || apt_install docker-cli
