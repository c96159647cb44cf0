#!/usr/bin/env bash
# Prove the server's image: build it on a Debian base made here, run it locked down, compare its answers over the
# published port with those of the same bundles in-process, and stop it.
#   deploy/image_test.sh [MODELS PICTURE...]    without arguments: a small bundle and pictures made here
# Wants root on Debian, 2 GB of memory to spare, and .venv-serving. Installs podman and debootstrap where they are
# missing, keeps the base in .cache, and leaves nothing else.
set -euo pipefail
umask 022 # the server's user must read what is made here
export PATH="$PATH:/usr/sbin:/sbin"

started=
fail() {
    [ -z "$started" ] || podman logs "$name" >&2 || true
    echo "image_test.sh: $*" >&2
    exit 1
}
step() { echo "== $* (at $SECONDS s)"; }

[ $# -ne 1 ] || fail "found MODELS without pictures; wanted: image_test.sh [MODELS PICTURE...]"
inputs=()
for input; do
    [ -e "$input" ] || fail "$input: not there; wanted: image_test.sh [MODELS PICTURE...]"
    inputs+=("$(realpath -- "$input")")
done
cd "$(dirname "$0")/.."
python=.venv-serving/bin/python
[ -x "$python" ] || fail "$python: not there; \`make image-test\` makes it"
[ "$(id -u)" -eq 0 ] || fail "debootstrap and apt-get want root; try sudo make image-test"

most_bytes=250000000 # above the base
most_seconds=60      # from start to SERVING
base=.cache/debian-bookworm.tar
base_image=localhost/debian-python:bookworm
image=localhost/calotype-serving:test
name=calotype-test-$$
scratch=$(mktemp -d)

job=
long() { # SECONDS COMMAND...: bash runs a trap at once in `wait`, but only after a command in the foreground
    timeout --kill-after=10 "$1" "${@:2}" >"$scratch/log" 2>&1 &
    job=$!
    wait "$job" || { tail -n 40 "$scratch/log" >&2; return 1; }
    job=
}
finish() {
    status=$?
    trap '' EXIT HUP INT TERM
    [ -z "$job" ] || { kill "$job" 2>/dev/null && wait "$job"; } || true
    if [ -d "$scratch/storage" ] && podman container exists "$name"; then
        podman rm --force --time 0 "$name" >/dev/null || status=1
    fi
    umount --lazy "$scratch" && rmdir "$scratch" || status=1 # lazy: with all that is mounted below
    umount /run/netns 2>/dev/null || true # podman's; busy, and stays, while another container runs
    rm -f "$base.$$"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' HUP INT TERM

# In memory, images and half-done builds too: podman leaves them behind where it is interrupted, and removing them from
# a disk took as long as all the rest.
mount -t tmpfs -o mode=755 calotype-image-test "$scratch"
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$scratch" "$scratch" \
    >"$scratch/storage.conf"
export CONTAINERS_STORAGE_CONF=$scratch/storage.conf TMPDIR=$scratch
export DISABLE_HC_SYSTEMD=true # the test asks for health itself; podman's own timers want systemd
podman() { timeout 60 podman "$@"; }

if ! type podman runc iptables debootstrap >/dev/null 2>&1; then
    step "install"
    export DEBIAN_FRONTEND=noninteractive
    # In the foreground: an interruption waits, because half an installation would stay.
    { timeout 300 apt-get -q update && timeout 600 apt-get -q install --yes --no-install-recommends \
        podman netavark runc iptables debootstrap; } >"$scratch/log" 2>&1 \
        || { tail -n 40 "$scratch/log" >&2; fail "cannot install podman, netavark, runc, iptables and debootstrap"; }
fi

if [ ! -f "$base" ]; then
    step "make $base"
    long 900 debootstrap --variant=minbase --include=python3,python3-venv bookworm "$scratch/root" \
        || fail "cannot make a Debian base"
    mkdir -p .cache
    long 300 tar --directory "$scratch/root" --create --file "$base.$$" --one-file-system \
        --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' .
    mv "$base.$$" "$base"
fi

step "build"
long 300 podman import "$base" "$base_image" || fail "cannot import $base; remove it and try again"
BUILDER=podman BASE_IMAGE=$base_image IMAGE=$image long 900 deploy/image.sh || fail "the build failed"

step "look inside"
size() { podman image inspect --format '{{.Size}}' "$1"; }
above=$(($(size "$image") - $(size "$base_image")))
echo "$((above / 1000000)) MB above a base of $(($(size "$base_image") / 1000000)) MB"
[ "$above" -gt 0 ] && [ "$above" -le "$most_bytes" ] || fail "$above bytes above the base: wanted at most $most_bytes"
root=$(podman image mount "$image")
unwanted=$(find "$root" -xdev -regextype posix-extended \( -path '*-packages/torch*' -o -name trainer \
    -o -path '*/.cache/pip' -o -regex '.*/bin/([^/]*-)?(g?cc|[cg]\+\+|clang)(-[0-9]+)?' \) -printf " /%P")
[ -z "$unwanted" ] || fail "found$unwanted in the image; wanted neither torch, trainer, compilers nor pip's cache"

if [ ${#inputs[@]} -eq 0 ]; then
    PYTHONPATH=tests/serving "$python" - "$scratch" <<'PYTHON'
import pathlib, sys
import tiny_bundle
folder = pathlib.Path(sys.argv[1])
tiny_bundle.write(folder / "models")
for label in tiny_bundle.LABELS:
    (folder / f"{label}.jpg").write_bytes(tiny_bundle.picture(label, size=(400, 300), file_format="JPEG"))
PYTHON
    inputs=("$scratch/models" "$scratch"/*.jpg)
fi

step "run"
podman --runtime runc run --detach --name "$name" --http-proxy=false \
    --read-only --read-only-tmpfs=false --cap-drop=ALL --security-opt no-new-privileges \
    --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --publish 127.0.0.1::50051 --volume "${inputs[0]}:/models:ro" "$image" --insecure >/dev/null
started=$SECONDS
until health=$(podman healthcheck run "$name" 2>&1); do
    state=$(podman inspect --format '{{.State.Status}}, exit code {{.State.ExitCode}}' "$name")
    [[ $state = running* ]] || fail "the container ended before it was SERVING: $state"
    [ "$((SECONDS - started))" -lt "$most_seconds" ] || fail "not SERVING after $most_seconds s: $health"
    sleep 0.5
done
[ "$(podman exec "$name" id -u)" -ne 0 ] || fail "the server runs as root"

step "classify"
port=$(podman port "$name" 50051/tcp)
no_proxy=127.0.0.1 timeout 300 "$python" deploy/compare_answers.py "127.0.0.1:${port##*:}" "${inputs[@]}" \
    || fail "the answers are not those of the bundles"

step "stop"
podman kill --signal TERM "$name" >/dev/null
code=$(podman wait "$name") || fail "still running 60 s after SIGTERM"
[ "$code" = 0 ] || fail "exit code $code after SIGTERM, wanted 0"
echo "exit code 0 after SIGTERM; all passed in $SECONDS s"
