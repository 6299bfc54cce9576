#!/usr/bin/env bash
# The image of `python -m benchmarks.sandboxes`: what sandboxes/images/build.sh makes, with Python and SWE-ReX's server in it.
#
#     benchmarks/sandbox_image.sh [TAG]        (default: klong-sandbox-benchmark)
#
# Once, about a minute: an image that is there is left as it is.
set -euo pipefail

TAG=${1:-klong-sandbox-benchmark}
SWEREX=1.4.0
here=$(cd "$(dirname "$0")" && pwd)

if docker image inspect "$TAG" >/dev/null 2>&1; then exit 0; fi
"$here/../sandboxes/images/build.sh" "$TAG-base" python3
python_version=$(docker run --rm --network none "$TAG-base" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/site" --python-version "$python_version" --only-binary=:all: \
    "swe-rex==$SWEREX"
printf 'FROM %s\nCOPY site /opt/swerex\nENV PYTHONPATH=/opt/swerex\n' "$TAG-base" >"$folder/Dockerfile"
docker build --quiet --tag "$TAG" "$folder" >/dev/null
