#!/usr/bin/env bash
# An emulated Debian bookworm root for arm64: made once, then entered. Function can be tried out there, not speed.
#
#   arm64.sh FOLDER make             makes FOLDER/root where there is none
#   arm64.sh FOLDER enter LINE       and runs a line of sh in it
#
# Needs root, mmdebstrap, qemu-user-static, and a network at the first run. PYTHON fetches the wheels, by its pip;
# CONSTRAINTS names a file with their versions.
set -euo pipefail

folder=$1 what=$2
python=${PYTHON:-python3}
root=$folder/root

die() {
    echo "arm64: $1; way out: $2" >&2
    exit 2
}
install='apt-get install mmdebstrap qemu-user-static'
[ "$(id -u)" -eq 0 ] || die "only root may enter a root of another machine" "run it with sudo"
qemu=$(command -v qemu-aarch64-static) || die "there is no qemu-aarch64-static" "$install"

# The kernel hands files of another machine to qemu; F: it opens qemu now, so that a chroot need not have it.
binfmt=/proc/sys/fs/binfmt_misc
[ -e "$binfmt/register" ] || mount -t binfmt_misc binfmt_misc "$binfmt" ||
    die "this kernel does not start files of other machines" "modprobe binfmt_misc, outside of a container"
if [ ! -e "$binfmt/qemu-aarch64" ]; then
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$qemu:F" >"$binfmt/register"
fi

mkdir -p "$folder"
# Of two that begin at once, one makes it.
exec 9>"$folder/lock"
flock 9
if [ ! -x "$root/usr/bin/python3" ]; then
    command -v mmdebstrap >/dev/null || die "there is no mmdebstrap" "$install"
    echo "arm64: making a Debian root; some minutes" >&2
    # Never beyond what lies on this disk, such as a /dev that somebody mounted there.
    rm -rf --one-file-system "$root"
    mmdebstrap --quiet --architectures=arm64 --variant=minbase --include=python3,python3-venv bookworm "$root" >&2 ||
        die "the Debian root could not be made" "look above, and for a way to a Debian mirror"
fi

# Wheels for that machine, unpacked here: nothing has to be compiled, and pip need not run under emulation.
if [ ! -e "$root/opt/site/wheels-are-there" ]; then
    for each in onnxruntime ai-edge-litert; do
        "$python" -m pip install --quiet --quiet --disable-pip-version-check --target "$root/opt/site" --upgrade \
            --python-version 3.11 --implementation cp --only-binary :all: \
            --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
            --platform manylinux2014_aarch64 ${CONSTRAINTS:+-c "$CONSTRAINTS"} \
            "$each" numpy tuf 'securesystemslib[crypto]' pytest >&2 ||
            die "the wheels for arm64 could not be fetched" "look above, and for a way to a package index"
    done
    touch "$root/opt/site/wheels-are-there"
fi
flock -u 9
exec 9>&-
[ "$what" = enter ] || exit 0

# In a mount namespace of its own: however this ends, nothing stays mounted where an `rm` could come by.
exec unshare --mount --propagation private /bin/sh -ec '
    for each in proc dev; do mount --bind "/$each" "$1/$each"; done
    exec chroot "$1" env -i PATH=/usr/bin:/bin HOME=/root PYTHONPATH=/opt/site OMP_NUM_THREADS=1 /bin/sh -c "$2"
' arm64 "$root" "$3"
