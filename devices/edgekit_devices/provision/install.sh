#!/bin/sh
# Sets edgekit-runtime and its agent up on a Debian device (Raspberry Pi OS, Jetson); again and again without harm.
#
#   sudo sh install.sh --server https://fleet.example.com --root root.json [--format tflite|onnx] [--channel stable]
#   sudo sh install.sh --uninstall [--purge]
#
# Run again, it upgrades edgekit-runtime and starts the agent anew. --uninstall leaves the models in /var/lib/edgekit
# and the settings in /etc/edgekit; --purge takes them along.
# PREFIX=/some/folder puts everything below that folder and starts nothing: to build an image for the same
# architecture, or to look.
set -eu

usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
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
server= root= format=tflite channel= uninstall= purge=
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
        --uninstall)
            uninstall=yes
            shift
            ;;
        --purge)
            purge=yes
            shift
            ;;
        *) usage ;;
    esac
done
if [ -z "$uninstall" ]; then
    [ -n "$server" ] && [ -n "$root" ] && [ -z "$purge" ] || usage
    [ -r "$root" ] || die "$root cannot be read" "take the root.json that your fleet gives out"
    case $format in tflite | onnx) ;; *) die "no backend for $format" "--format tflite or --format onnx" ;; esac
fi
if [ -z "$prefix" ] && [ "$(id -u)" -ne 0 ]; then
    die "only root may do this" "sudo sh $0 …"
fi
if [ -n "$prefix" ]; then
    mkdir -p "$prefix"
    prefix=$(cd "$prefix" && pwd)
fi
units=$prefix/etc/systemd/system
settings=$prefix/etc/edgekit/agent.env
installed_root=$prefix/etc/edgekit/root.json

if [ -n "$uninstall" ]; then
    [ -n "$prefix" ] || systemctl disable --now edgekit-agent || true
    rm -rf "$prefix/opt/edgekit" "$units/edgekit-agent.service" "$units/edgekit-agent.service.d" \
        "$units/multi-user.target.wants/edgekit-agent.service" "$prefix/etc/sysusers.d/edgekit.conf"
    [ -n "$prefix" ] || systemctl daemon-reload
    if [ -n "$purge" ]; then
        rm -rf "$prefix/etc/edgekit" "$prefix/var/lib/edgekit"
        [ -n "$prefix" ] || ! id edgekit >/dev/null 2>&1 || userdel edgekit
    fi
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is older than 3.10" "install a newer one, and give PYTHON=/path/to/python3"

if [ -z "$prefix" ] && ! id edgekit >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit
fi
mkdir -p "$prefix/opt" "$prefix/etc/edgekit" "$prefix/etc/sysusers.d" "$units"
# One that was cut off before it had pip is made anew.
"$prefix/opt/edgekit/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m venv --clear "$prefix/opt/edgekit"
"$prefix/opt/edgekit/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$package[$format]"
if [ -n "$prefix" ]; then
    # Its commands name the interpreter by where it will be.
    find "$prefix/opt/edgekit/bin" -type f -exec sed -i "s|$prefix/opt/edgekit|/opt/edgekit|g" {} +
fi

# The first root stays: newer ones come from the server, signed by it.
if [ ! -e "$installed_root" ]; then
    install -m 644 "$root" "$installed_root"
elif ! cmp -s "$root" "$installed_root"; then
    echo "install.sh: $installed_root stays as it is; a newer one comes from the server" >&2
fi
# What a person wrote there stays.
if [ ! -e "$settings" ]; then
    {
        echo "# Settings of the agent; EDGEKIT_DEVICE names this device, by default after its machine-id."
        echo "EDGEKIT_SERVER=$server"
        echo "EDGEKIT_CHANNEL=${channel:-stable}"
    } >"$settings"
else
    for each in "EDGEKIT_SERVER=$server" ${channel:+"EDGEKIT_CHANNEL=$channel"}; do
        grep -qxF "$each" "$settings" ||
            echo "install.sh: $settings stays as it is; write $each there if you mean that" >&2
    done
fi
install -m 644 "$here/edgekit-agent.service" "$units/edgekit-agent.service"
# For accelerators that a trial runs on; systemd starts nothing that names a group which does not exist.
groups=
rm -f "$units/edgekit-agent.service.d/groups.conf"
for each in video render; do
    if grep -q "^$each:" "$prefix/etc/group" 2>/dev/null; then groups="$groups $each"; fi
done
if [ -n "$groups" ]; then
    mkdir -p "$units/edgekit-agent.service.d"
    printf '[Service]\nSupplementaryGroups=%s\n' "${groups# }" >"$units/edgekit-agent.service.d/groups.conf"
fi
install -m 644 "$here/edgekit-sysusers.conf" "$prefix/etc/sysusers.d/edgekit.conf"
if [ -z "$prefix" ]; then
    systemctl daemon-reload
    systemctl enable edgekit-agent
    systemctl restart edgekit-agent
    echo "the agent runs: journalctl -u edgekit-agent; versions: EDGEKIT_STORE=/var/lib/edgekit /opt/edgekit/bin/edgekit-runtime status"
else
    # Else the first boot makes the user; a passwd of one line is nobody's, and would take the place of a whole one.
    if [ -e "$prefix/etc/passwd" ] && command -v systemd-sysusers >/dev/null; then
        systemd-sysusers --root="$prefix" edgekit.conf || true
    fi
    # As `systemctl enable` does, which need not be here.
    mkdir -p "$units/multi-user.target.wants"
    ln -sf /etc/systemd/system/edgekit-agent.service "$units/multi-user.target.wants/edgekit-agent.service"
    echo "everything is below $prefix; nothing was started"
fi
