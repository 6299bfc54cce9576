#!/usr/bin/env bash
# Make the default sandbox image from the distribution's packages, with no registry:
#
#     sandboxes/images/build.sh [TAG [PACKAGE ...]]        (default: klong-sandbox)
#
# A minimal Debian or Ubuntu, whichever this host is, from the host's own package sources: a shell, coreutils, grep,
# sed, awk, find, tar, procps, and the packages named; a user `agent` (uid 1000) whose home is the working directory /work. About 100 MB,
# 20 to 60 s, once: an image that carries the digest of this file and the suite is left as it is.
# Runs as root, or as anyone who may use Docker and user namespaces.
set -euo pipefail

TAG=${1:-klong-sandbox}
PACKAGES=$(echo findutils gawk grep procps sed tar "${@:2}" | tr ' ' ,)
LABEL=klong.recipe

die() { echo "error: $1" >&2; echo "remedy: $2" >&2; exit 1; }

docker version >/dev/null 2>&1 || die "no Docker daemon answers" "make docker, or set DOCKER_HOST"
[ -r /etc/os-release ] || die "this host has no /etc/os-release" "make the image on Debian or Ubuntu and docker load it"
# shellcheck source=/dev/null
. /etc/os-release
case ${ID:-} in
    debian | ubuntu) ;;
    *) die "this host is ${ID:-unknown}, and the image is made from Debian's or Ubuntu's packages" \
        "make it on such a host, then: docker save $TAG | ssh THIS-HOST docker load" ;;
esac

digest=$({ echo "$VERSION_CODENAME $PACKAGES"; cat "$0"; } | sha256sum | cut -c 1-16)
if [ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$TAG" 2>/dev/null)" = "$digest" ]; then
    exit 0
fi
command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed" "apt-get install mmdebstrap"

# The distribution's own archive, in whichever of apt's two formats the host has it: so, the host's mirror.
sources=()
for file in /etc/apt/sources.list "/etc/apt/sources.list.d/$ID.sources"; do
    if [ -s "$file" ]; then sources+=("$file"); fi
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "making image $TAG from $ID $VERSION_CODENAME"
# To a file first: a pipe would import half an image where mmdebstrap fails. The hooks get the new root as $1.
mmdebstrap --quiet --variant=essential --include="$PACKAGES" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook='echo "agent:x:1000:1000::/work:/bin/bash" >> "$1/etc/passwd"' \
    --customize-hook='echo "agent:x:1000:" >> "$1/etc/group"' \
    --customize-hook='mkdir "$1/work" && chown 1000:1000 "$1/work"' \
    "$VERSION_CODENAME" "$folder/root.tar" "${sources[@]}" \
    || die "mmdebstrap could not make the file system" "see its messages above; without root it needs user namespaces"
docker import --change 'ENV LANG=C.UTF-8' --change 'ENV HOME=/work' --change 'WORKDIR /work' --change 'USER agent' \
    --change 'CMD ["bash"]' --change "LABEL $LABEL=$digest" "$folder/root.tar" "$TAG" >/dev/null
