#!/usr/bin/env bash
# Build the server's image, calotype-serving:VERSION, with docker, podman or buildah, whichever is there.
#   BASE_IMAGE  stand on this image instead of the Dockerfile's own choice
#   BUILDER     docker, podman or buildah instead of the first that works
#   IMAGE       name the image otherwise
# Further arguments go to the builder, such as --no-cache.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "image.sh: $*" >&2
    exit 1
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' bundle/__init__.py)
[ -n "$version" ] || fail "bundle/__init__.py: found no __version__"
image=${IMAGE:-calotype-serving:$version}

builder=${BUILDER:-}
if [ -z "$builder" ]; then
    if command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; then
        builder=docker
    elif command -v podman >/dev/null; then
        builder=podman
    elif command -v buildah >/dev/null; then
        builder=buildah
    else
        fail "found none of docker (with a running engine), podman and buildah; install one, say: apt-get install podman"
    fi
fi

case $builder in
docker)
    export DOCKER_BUILDKIT=1 # the older builder knows no secrets
    build=(docker build) ;;
# Only the docker format has a place for HEALTHCHECK and STOPSIGNAL.
# chroot: needs no working OCI runtime, so that it also builds inside a container.
# Layers kept for a later build would be 400 MB without a name after every change.
podman | buildah)
    build=("$builder" build --format=docker --isolation="${BUILDAH_ISOLATION:-chroot}" --layers=false) ;;
*) fail "BUILDER=$builder: wanted docker, podman or buildah" ;;
esac

# This machine's pip settings, as secrets of the build: seen by its pip, part of no layer.
# Folders of this machine are left out.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
python=.venv/bin/python
[ -x "$python" ] || python=python3
settings=$("$python" -m pip config list 2>/dev/null || true)
setting() { # the value of one pip setting, the environment's first
    sed -nE "s/^(:env:|global)\.$1='(.*)'\$/\2/p" <<<"$settings" | head -n 1 | sed -E 's#(^| )(file:|/)[^ ]*##g; s/\\n/ /g'
}
{
    echo "[global]"
    for key in index-url extra-index-url trusted-host proxy default-timeout; do
        value=$(setting "$key")
        [ -z "${value// /}" ] || echo "$key = $value"
    done
} >"$secrets/pip.conf"
certificates=$(sed -nE "s/^(:env:|global)\.cert='(.*)'\$/\2/p" <<<"$settings" | head -n 1)
if [ -n "$certificates" ]; then
    [ -r "$certificates" ] || fail "$certificates: pip's certificates, but unreadable"
    echo "cert = /run/secrets/ca_certs" >>"$secrets/pip.conf"
    build+=(--secret "id=ca_certs,src=$certificates")
fi
build+=(--secret "id=pip_conf,src=$secrets/pip.conf")

[ -z "${BASE_IMAGE:-}" ] || build+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
timeout --foreground --kill-after=30 1800 "${build[@]}" "$@" --file serving/Dockerfile --tag "$image" .
echo "built $image with $builder"
