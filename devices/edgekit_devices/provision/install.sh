#!/bin/sh
# Sets edgekit-runtime and its agent up on a Debian device (Raspberry Pi OS, Jetson); again and again without harm.
#
#   sudo sh install.sh --server https://fleet.example.com --root root.json [--format tflite|onnx] [--channel stable]
#
# PREFIX=/some/folder puts everything below that folder and starts nothing: to build an image, or to look.
set -eu

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

die() {
    echo "install.sh: $1" >&2
    echo "  way out:  $2" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-}
python=${PYTHON:-python3}
package=${PACKAGE:-edgekit-runtime}
server= root= format=tflite channel=stable
while [ $# -gt 0 ]; do
    case $1 in
        --server | --root | --format | --channel)
            [ $# -ge 2 ] || usage
            case $1 in
                --server) server=$2 ;;
                --root) root=$2 ;;
                --format) format=$2 ;;
                --channel) channel=$2 ;;
            esac
            shift 2
            ;;
        *) usage ;;
    esac
done
[ -n "$server" ] && [ -n "$root" ] || usage
[ -r "$root" ] || die "$root cannot be read" "take the root.json that your fleet gives out"
case $format in tflite | onnx) ;; *) die "no backend for $format" "--format tflite or --format onnx" ;; esac
if [ -z "$prefix" ] && [ "$(id -u)" -ne 0 ]; then
    die "only root may do this" "sudo sh $0 …"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is older than 3.10" "install a newer one, and give PYTHON=/path/to/python3"

if [ -z "$prefix" ] && ! id edgekit >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit
fi
mkdir -p "$prefix/opt" "$prefix/etc/edgekit" "$prefix/etc/systemd/system"
# One that was cut off before it had pip is made anew.
"$prefix/opt/edgekit/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m venv --clear "$prefix/opt/edgekit"
"$prefix/opt/edgekit/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$package[$format]"
# The first root stays: newer ones come from the server, signed by it.
[ -e "$prefix/etc/edgekit/root.json" ] || install -m 644 "$root" "$prefix/etc/edgekit/root.json"
# What a person wrote there stays.
if [ ! -e "$prefix/etc/edgekit/agent.env" ]; then
    {
        echo "# Settings of the agent; EDGEKIT_DEVICE names this device, by default after its machine-id."
        echo "EDGEKIT_SERVER=$server"
        echo "EDGEKIT_CHANNEL=$channel"
    } >"$prefix/etc/edgekit/agent.env"
elif ! grep -qxF "EDGEKIT_SERVER=$server" "$prefix/etc/edgekit/agent.env"; then
    echo "install.sh: $prefix/etc/edgekit/agent.env stays as it is, and names another server than $server" >&2
fi
install -m 644 "$here/edgekit-agent.service" "$prefix/etc/systemd/system/edgekit-agent.service"
if [ -z "$prefix" ]; then
    systemctl daemon-reload
    systemctl enable edgekit-agent
    systemctl restart edgekit-agent
    echo "the agent runs: journalctl -u edgekit-agent; versions: EDGEKIT_STORE=/var/lib/edgekit /opt/edgekit/bin/edgekit-runtime status"
else
    echo "everything is below $prefix; nothing was started"
fi
