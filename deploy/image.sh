#!/usr/bin/env bash
# Build the server's image, calotype-serving:VERSION, with docker, podman or buildah, whichever is there.
#   BASE_IMAGE  stand on this image instead of the Dockerfile's own choice
#   IMAGE       name the image otherwise
#   BUILDER     docker, podman or buildah instead of the first that works
# Further arguments go to the builder, such as --no-cache.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "image.sh: $*" >&2
    exit 1
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' bundle/__init__.py)
[ -n "$version" ] || fail "bundle/__init__.py: found no __version__"

builder=${BUILDER:-}
if [ -z "$builder" ]; then
    if timeout 20 docker info >/dev/null 2>&1; then # the command alone, without an engine, builds nothing
        builder=docker
    else
        builder=$(type -P podman || type -P buildah || true)
    fi
fi
case ${builder##*/} in
docker)
    export DOCKER_BUILDKIT=1 # the older builder knows no secrets
    build=("$builder" build) ;;
# Only the docker format has a place for HEALTHCHECK and STOPSIGNAL.
# chroot: needs no working OCI runtime, so that it also builds inside a container.
# Layers kept for a later build would be 400 MB without a name after every change.
podman | buildah) build=("$builder" build --format=docker --isolation=chroot --layers=false) ;;
"") fail "found none of docker (with a running engine), podman and buildah; install one, say: apt-get install podman" ;;
*) fail "BUILDER=$builder: wanted docker, podman or buildah" ;;
esac

# The authorities that this machine trusts, for the build's pip alone: the base may know none, or not this network's.
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ ! -r "$certificates" ] || build+=(--secret "id=ca_certs,src=$certificates")
[ -z "${BASE_IMAGE:-}" ] || build+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
exec "${build[@]}" "$@" --file serving/Dockerfile --tag "${IMAGE:-calotype-serving:$version}" .
