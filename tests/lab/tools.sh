#!/bin/sh
# Makes sure this host has what the lab is built with: installs what is missing when it is root,
# names it when it is not. More programs and their packages may be given: tools.sh make=make ...
set -eu

missing=
need() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
# As in tests/lab/recipe.py, HOST_TOOLS.
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need qemu-img qemu-utils
need gcc gcc
need unshare util-linux
need setpriv util-linux
need tar tar
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing="$missing libc6-dev"
for more in "$@"; do need "${more%%=*}" "${more#*=}"; done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "the lab needs more on this host: sudo apt-get install$missing" >&2
    exit 1
fi
echo "installing what the lab is built with:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -qq -y --no-install-recommends $missing >/dev/null
