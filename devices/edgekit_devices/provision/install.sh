#!/bin/sh
# Sets edgekit-runtime and its agent up on a Debian device (Raspberry Pi OS, Jetson); again and again without harm.
#
#   sudo sh install.sh --server https://fleet.example.com --root root.json [--format tflite|onnx] [--channel stable]
#                      [--code FILE | --token FILE] [--labels region=eu,hardware=pi4]
#   sudo sh install.sh --uninstall [--purge]
#
# --code names a file with the enrolment code, --token one with the token that a device got before. Run again, it
# upgrades edgekit-runtime and starts the agent anew; where PACKAGE is a wheel, only what differs is done.
# --uninstall leaves the models in /var/lib/edgekit and the settings in /etc/edgekit; --purge takes them along.
# PREFIX=/some/folder puts everything below that folder and starts nothing: to build an image for the same
# architecture, or to look.
set -eu
# Of root, and not of every session of a user.
PATH=$PATH:/usr/sbin:/sbin

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
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
server= root= format=tflite channel= code= token= labels= uninstall= purge=
while [ $# -gt 0 ]; do
    case $1 in
        --server | --root | --format | --channel | --code | --token | --labels)
            [ $# -ge 2 ] || usage
            case $1 in
                --server) server=$2 ;;
                --root) root=$2 ;;
                --format) format=$2 ;;
                --channel) channel=$2 ;;
                --code) code=$2 ;;
                --token) token=$2 ;;
                --labels) labels=$2 ;;
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
    [ -z "$code" ] || [ -z "$token" ] || usage
    for each in "$code" "$token"; do
        [ -z "$each" ] || [ -r "$each" ] || die "$each cannot be read" "give a file with the code or the token in it"
    done
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
wanted=$units/multi-user.target.wants/edgekit-agent.service
settings=$prefix/etc/edgekit/agent.env
installed_root=$prefix/etc/edgekit/root.json
installed_token=$prefix/etc/edgekit/token
venv=$prefix/opt/edgekit

if [ -n "$uninstall" ]; then
    if [ -z "$prefix" ] && [ -e "$units/edgekit-agent.service" ]; then
        systemctl disable --now edgekit-agent || true
    fi
    rm -rf "$venv" "$units/edgekit-agent.service" "$units/edgekit-agent.service.d" "$wanted" \
        "$prefix/etc/sysusers.d/edgekit.conf" "$prefix/etc/tmpfiles.d/edgekit.conf"
    # Only where nobody else has anything in them.
    rmdir "$prefix/etc/sysusers.d" "$prefix/etc/tmpfiles.d" 2>/dev/null || true
    [ -n "$prefix" ] || ! command -v systemctl >/dev/null || systemctl daemon-reload
    if [ -n "$purge" ]; then
        rm -rf "$prefix/etc/edgekit" "$prefix/var/lib/edgekit"
        [ -n "$prefix" ] || ! id edgekit >/dev/null 2>&1 || userdel edgekit
    else
        for each in etc/edgekit var/lib/edgekit; do
            [ ! -e "$prefix/$each" ] || echo "install.sh: /$each stays; --uninstall --purge takes it along" >&2
        done
    fi
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is older than 3.10" "install a newer one, and give PYTHON=/path/to/python3"

# The agent has to be started anew; also by the next run, where this one is cut off before it does.
change() { : >"$venv/changed"; }

# Copies a file where it differs.
put() {
    cmp -s "$1" "$2" || {
        change
        install -m 644 "$1" "$2"
    }
}

# Adds a setting; what a person wrote there stays.
setting() {
    if ! grep -q "^$1=" "$settings"; then
        change
        # The last line of a person may lack its end.
        [ -z "$(tail -c 1 "$settings")" ] || echo >>"$settings"
        echo "$1=$2" >>"$settings"
    elif ! grep -qxF "$1=$2" "$settings"; then
        echo "install.sh: $settings stays as it is; write $1=$2 there if you mean that" >&2
    fi
}

if [ -z "$prefix" ] && ! id edgekit >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit
fi
mkdir -p "$prefix/opt" "$prefix/etc/edgekit" "$prefix/etc/sysusers.d" "$prefix/etc/tmpfiles.d" "$units"

pip() { "$venv/bin/python" -m pip "$@"; }
stamp=
case $package in */*.whl) stamp="$(sha256sum "$package" | cut -d ' ' -f 1) $format" ;; esac
whole=yes
pip --version >/dev/null 2>&1 || whole=
if [ -z "$whole" ] || [ -z "$stamp" ] || [ "$(cat "$venv/package" 2>/dev/null)" != "$stamp" ]; then
    if [ -z "$whole" ]; then
        "$python" -c "import venv, ensurepip" 2>/dev/null ||
            die "$python makes no virtual environments" "apt-get install python3-venv"
        # One that was cut off before it had pip is made anew.
        "$python" -m venv --clear "$venv"
    fi
    rm -f "$venv/package"
    pip install --quiet --disable-pip-version-check --no-cache-dir --upgrade "$package[$format]"
    # Of two wheels of one version, pip keeps the first.
    [ -z "$stamp" ] || [ -z "$whole" ] ||
        pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall "$package"
    if [ -n "$prefix" ]; then
        # Its commands name the interpreter by where it will be.
        find "$venv/bin" -type f -exec sed -i "s|$venv|/opt/edgekit|g" {} +
    fi
    change
    [ -z "$stamp" ] || echo "$stamp" >"$venv/package"
fi

# The first root stays: newer ones come from the server, signed by it.
if [ ! -e "$installed_root" ]; then
    put "$root" "$installed_root"
elif ! cmp -s "$root" "$installed_root"; then
    echo "install.sh: $installed_root stays as it is; a newer one comes from the server" >&2
fi

owner=
[ -n "$prefix" ] || owner=edgekit
if [ -n "$code" ] && [ -e "$installed_token" ]; then
    echo "install.sh: this device is enrolled; the code was not used" >&2
elif [ -n "$code" ]; then
    device=$(sed -n 's/^EDGEKIT_DEVICE="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$settings" 2>/dev/null | tail -n 1)
    change
    found=$("$venv/bin/python" "$here/enrol.py" --server "$server" --token "$installed_token" --owner "$owner" \
        --device "$device" <"$code")
    channel=${channel:-$found}
elif [ -n "$token" ] && ! cmp -s "$token" "$installed_token"; then
    change
    (
        umask 077
        cat "$token" >"$installed_token.new"
        [ -z "$owner" ] || chown "$owner:$owner" "$installed_token.new"
        chmod 400 "$installed_token.new"
        mv "$installed_token.new" "$installed_token"
    )
fi

if [ ! -e "$settings" ]; then
    echo "# Settings of the agent; EDGEKIT_DEVICE names this device, by default after its machine-id." >"$settings"
    channel=${channel:-stable}
fi
setting EDGEKIT_SERVER "$server"
[ -z "$channel" ] || setting EDGEKIT_CHANNEL "$channel"
[ -z "$labels" ] || setting EDGEKIT_LABELS "$labels"
[ ! -e "$installed_token" ] || setting EDGEKIT_TOKEN_FILE /etc/edgekit/token

put "$here/edgekit-agent.service" "$units/edgekit-agent.service"
# For accelerators that a trial runs on; systemd starts nothing that names a group which does not exist.
groups=
for each in video render; do
    if grep -q "^$each:" "$prefix/etc/group" 2>/dev/null; then groups="$groups $each"; fi
done
conf=$units/edgekit-agent.service.d/groups.conf
text=
[ -z "$groups" ] || text=$(printf '[Service]\nSupplementaryGroups=%s' "${groups# }")
if [ "$(cat "$conf" 2>/dev/null)" != "$text" ]; then
    change
    rm -f "$conf"
    [ -z "$text" ] || { mkdir -p "$units/edgekit-agent.service.d" && echo "$text" >"$conf"; }
fi
put "$here/edgekit-sysusers.conf" "$prefix/etc/sysusers.d/edgekit.conf"
put "$here/edgekit-tmpfiles.conf" "$prefix/etc/tmpfiles.d/edgekit.conf"
if [ -z "$prefix" ]; then
    if [ -e "$venv/changed" ] || ! systemctl is-active --quiet edgekit-agent || [ ! -e "$wanted" ]; then
        systemctl daemon-reload
        systemctl enable edgekit-agent
        systemctl restart edgekit-agent
        rm -f "$venv/changed"
    fi
    echo "the agent runs: journalctl -u edgekit-agent; versions: EDGEKIT_STORE=/var/lib/edgekit /opt/edgekit/bin/edgekit-runtime status"
else
    # Else the first boot makes the user; a passwd of one line is nobody's, and would take the place of a whole one.
    if [ -e "$prefix/etc/passwd" ] && command -v systemd-sysusers >/dev/null; then
        systemd-sysusers --root="$prefix" edgekit.conf || true
    fi
    # As `systemctl enable` does, which need not be here.
    mkdir -p "$units/multi-user.target.wants"
    [ -L "$wanted" ] || ln -s /etc/systemd/system/edgekit-agent.service "$wanted"
    rm -f "$venv/changed"
    echo "everything is below $prefix; nothing was started"
fi
