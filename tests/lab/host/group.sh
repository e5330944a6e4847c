#!/bin/sh
# lab-group: a volume group on physical volumes that can be made to fail.
#   create VG COUNT MIB [POOL_MIB CHUNK]   the physical volumes, perhaps a thin pool on the first
#   break VG N, mend VG N                  all that goes to the N-th of them, from 0, fails
#   destroy VG                             what was made, and every volume in it
# Each is a target over a volume of vg0, which LVM does not scan for physical volumes: so it sees
# one device for each, and not the one below too.
set -eu
verb=$1 vg=$2

name() { echo "pv-$vg-$1"; }

whole() { # N KIND: the table of all of it
    case $2 in
    linear) echo "0 $(blockdev --getsz "/dev/vg0/$(name "$1")") linear /dev/vg0/$(name "$1") 0" ;;
    error) echo "0 $(blockdev --getsz "/dev/vg0/$(name "$1")") error" ;;
    esac
}

switch() { # N KIND: without flushing, for what is under way would wait for ever
    dmsetup load "$(name "$1")" --table "$(whole "$1" "$2")"
    dmsetup suspend --noflush --nolockfs "$(name "$1")"
    dmsetup resume "$(name "$1")"
}

case $verb in
create)
    count=$3 mib=$4
    pvs=
    for n in $(seq 0 $((count - 1))); do
        lvcreate -qq -y -L "${mib}m" -n "$(name "$n")" vg0
        dmsetup create "$(name "$n")" --table "$(whole "$n" linear)"
        pvs="$pvs /dev/mapper/$(name "$n")"
    done
    # shellcheck disable=SC2086 - names without blanks
    vgcreate -qq -y "$vg" $pvs
    if [ $# -gt 4 ]; then
        lvcreate -qq -y --type thin-pool -L "${5}m" -c "$6" --poolmetadatasize 4m -Zy -n pool "$vg" \
            "/dev/mapper/$(name 0)"
    fi
    ;;
break) switch "$3" error ;;
mend)
    switch "$3" linear
    # Metadata may have been written while it was away: LVM wants to be told that it is good.
    vgextend -qq --restoremissing "$vg" "/dev/mapper/$(name "$3")" 2>/dev/null || true
    ;;
destroy)
    vgremove -qq -y "$vg" || true
    for device in "/dev/mapper/pv-$vg-"*; do
        [ -e "$device" ] || continue
        dmsetup remove --retry "$(basename "$device")"
        lvremove -qq -y "vg0/$(basename "$device")"
    done
    ;;
*)
    echo "lab-group: unknown verb $verb" >&2
    exit 2
    ;;
esac
