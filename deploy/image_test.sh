#!/usr/bin/env bash
# Prove the server's image: build it on a Debian base made here, run it locked down, classify over its port, stop it.
#   deploy/image_test.sh MODELS PICTURE...
#   BASE_IMAGE     stand on this image instead; nothing is bootstrapped then
#   DEBIAN_MIRROR  fetch the base from this mirror instead of debootstrap's own
# Wants root (packages and the base need it), a Debian or Ubuntu with apt, and .venv or .venv-serving for the client.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

fail() {
    echo "image_test.sh: $*" >&2
    exit 1
}
step() { echo "== $*"; }

[ $# -ge 2 ] || fail "wanted: image_test.sh MODELS PICTURE..."
models=$(realpath -- "$1")
shift
[ -d "$models" ] || fail "$models: wanted a folder of models"
pictures=()
for picture; do
    [ -f "$picture" ] || fail "$picture: wanted a picture file"
    pictures+=("$(realpath -- "$picture")")
done
cd "$(dirname "$0")/.."
client=
for python in .venv/bin/python .venv-serving/bin/python; do
    [ -n "$client" ] || ! [ -x "$python" ] || client=$python
done
[ -n "$client" ] || fail "found neither .venv nor .venv-serving for the client; make setup"

most_bytes=250000000 # above the base
most_seconds=90      # from start to SERVING
base=${BASE_IMAGE:-localhost/calotype-test-base:bookworm}
image=localhost/calotype-serving:test-$$
name=calotype-test-$$
scratch=$(mktemp -d /var/tmp/calotype-image-test.XXXXXX) # not /tmp, which may forbid devices
export DISABLE_HC_SYSTEMD=true # the test asks for health itself; podman's own timers want systemd
export no_proxy=127.0.0.1,localhost

finish() {
    status=$?
    trap - EXIT
    if command -v podman >/dev/null; then
        if timeout 20 podman container exists "$name"; then
            [ "$status" -eq 0 ] || timeout 20 podman logs "$name" >&2 || true
            timeout 60 podman rm --force --time 0 "$name" >/dev/null || status=1
        fi
        timeout 60 podman rmi "$image" >/dev/null 2>&1 || true
    fi
    umount -R "$scratch/root/proc" 2>/dev/null || true # left behind where debootstrap was cut short
    rm -rf --one-file-system "$scratch"
    [ "$status" -eq 0 ] || echo "image_test.sh: FAILED" >&2
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

missing=()
command -v podman >/dev/null || missing+=(podman netavark iptables)
command -v runc >/dev/null || missing+=(runc)
[ -n "${BASE_IMAGE:-}" ] || command -v debootstrap >/dev/null || missing+=(debootstrap)
if [ ${#missing[@]} -gt 0 ]; then
    step "install ${missing[*]}"
    [ "$(id -u)" -eq 0 ] || fail "missing ${missing[*]}: install them, or run as root"
    export DEBIAN_FRONTEND=noninteractive
    timeout --foreground 300 apt-get -qq update
    timeout --foreground 600 apt-get -qq -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends \
        "${missing[@]}" >"$scratch/apt.log" 2>&1 \
        || { tail -n 30 "$scratch/apt.log" >&2; fail "cannot install ${missing[*]}"; }
fi

if [ -z "${BASE_IMAGE:-}" ] && ! timeout 30 podman image exists "$base"; then
    step "make $base"
    [ "$(id -u)" -eq 0 ] || fail "debootstrap wants root; or set BASE_IMAGE"
    timeout --foreground --kill-after=30 900 debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$scratch/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$scratch/debootstrap.log" 2>&1 \
        || { tail -n 30 "$scratch/debootstrap.log" >&2; fail "cannot make a Debian base"; }
    tar --directory "$scratch/root" --create --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' . \
        | timeout 300 podman import --quiet - "$base" >/dev/null
    rm -rf --one-file-system "$scratch/root"
fi

step "build"
BUILDER=podman BASE_IMAGE=$base IMAGE=$image deploy/image.sh >"$scratch/build.log" 2>&1 \
    || { tail -n 40 "$scratch/build.log" >&2; fail "the build failed"; }
size() { timeout 30 podman image inspect --format '{{.Size}}' "$1"; }
above=$(($(size "$image") - $(size "$base")))
echo "$((above / 1000000)) MB above the base of $(($(size "$base") / 1000000)) MB"
[ "$above" -gt 0 ] && [ "$above" -le "$most_bytes" ] || fail "$above bytes above the base: wanted at most $most_bytes"

step "run"
timeout 60 podman --runtime runc run --detach --name "$name" --http-proxy=false \
    --read-only --read-only-tmpfs=false --cap-drop=ALL --security-opt no-new-privileges \
    --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --publish 127.0.0.1::50051 --volume "$models:/models:ro" "$image" >/dev/null
deadline=$((SECONDS + most_seconds))
until health=$(timeout 20 podman healthcheck run "$name" 2>&1); do
    running=$(timeout 20 podman inspect --format '{{.State.Running}}' "$name")
    [ "$running" = true ] || fail "the container ended before it was SERVING"
    [ "$SECONDS" -lt "$deadline" ] || fail "not SERVING after $most_seconds s: $health"
    sleep 0.5
done
echo "SERVING"

step "look inside"
timeout 60 podman exec -i "$name" python3 - <<'PYTHON'
import importlib.util
import os
import pathlib
import shutil

present = [name for name in ("torch", "torchvision", "trainer", "pip", "setuptools") if importlib.util.find_spec(name)]
assert not present, f"wanted none of {present} in the image"
programs = [name for name in ("cc", "gcc", "g++", "clang", "trainer") if shutil.which(name)]  # pip may be the base's own
assert not programs, f"wanted none of {programs} in the image"
assert os.environ.get("ORT_DISABLE_TELEMETRY") == "1", "wanted ONNX Runtime told to send nothing"
status = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
assert os.getuid() != 0 and "0" not in status["Uid"].split(), status["Uid"]
assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"].strip() == "1", status
for folder in ("/", "/tmp", "/var/tmp", "/opt/calotype", "/models"):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    raise AssertionError(f"{folder}: wanted it read-only")
PYTHON

step "classify"
port=$(timeout 20 podman port "$name" 50051/tcp)
timeout 60 "$client" -m serving classify "${pictures[@]}" --address "127.0.0.1:${port##*:}" \
    --top-k 3 --json >"$scratch/answers.json" \
    || { cat "$scratch/answers.json" >&2; fail "the server did not classify every picture"; }
timeout 20 "$client" - "$scratch/answers.json" "${#pictures[@]}" <<'PYTHON'
import json
import pathlib
import sys

answers = json.loads(pathlib.Path(sys.argv[1]).read_text())
assert len(answers) == int(sys.argv[2]), f"{len(answers)} answers for {sys.argv[2]} pictures"
for answer in answers:
    best = answer["predictions"][0]
    print(answer["image"], best["label"], f"{best['score']:.4f}")
PYTHON

step "stop"
timeout 20 podman kill --signal TERM "$name" >/dev/null
code=$(timeout 60 podman wait "$name") || fail "still running 60 s after SIGTERM"
[ "$code" = 0 ] || fail "exit $code after SIGTERM: wanted 0"
echo "exit 0 after SIGTERM; all passed"
