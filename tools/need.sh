#!/bin/sh
# need.sh [THING:]PACKAGE... - make sure that what a command needs is installed.
#
# THING is a command, or a file if it begins with `/`; without it, the package itself is asked for.
# What is missing is named and installed with apt-get; where that cannot be done, it says what to
# install and fails. Says nothing when nothing is missing.
set -u
missing=
for need in "$@"; do
    package=${need##*:}
    case $need in
    /*:*) [ -e "${need%:*}" ] && continue ;;
    *:*) command -v "${need%:*}" >/dev/null 2>&1 && continue ;;
    *) case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
        installed) continue ;;
        esac ;;
    esac
    case " $missing " in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0

by_hand()
{
    echo "$1 Please install, by Debian's names:$missing" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 || by_hand "Some programs are missing, and there is no apt-get."
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || by_hand "Some programs are missing, and this is not root."
    sudo=sudo
fi
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

apt()
{
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" \
        >"$log" 2>&1 </dev/null
}

echo "Missing:$missing"
echo "Reading the lists of packages (apt-get update)"
apt update || { tail -n 5 "$log" >&2; echo "apt-get update failed; trying all the same" >&2; }
for package in $missing; do
    echo "Installing $package"
    apt install --no-install-recommends "$package" || {
        tail -n 15 "$log" >&2
        by_hand "apt-get could not install $package."
    }
done
