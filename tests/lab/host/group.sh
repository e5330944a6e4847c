#!/bin/sh
# lab-group: a volume group on physical volumes that can be made to fail.
#   create VG COUNT MIB [POOL_MIB CHUNK]   linear targets over sparse files; perhaps a thin pool
#   break VG N, mend VG N                  all that goes to the N-th of them, from 0, fails
#   destroy VG                             what was made, and every volume in it
set -eu
verb=$1 vg=$2
folder=/var/lib/lab

name() { echo "pv-$vg-$1"; }

switch() { # N TABLE: without flushing, for what is under way would wait for ever
    dmsetup load "$(name "$1")" --table "$2"
    dmsetup suspend --noflush --nolockfs "$(name "$1")"
    dmsetup resume "$(name "$1")"
}

sectors() { dmsetup info -c --noheadings -o name "$(name "$1")" >/dev/null &&
    blockdev --getsz "/dev/mapper/$(name "$1")"; }

case $verb in
create)
    count=$3 mib=$4
    modprobe loop
    pvs=
    for n in $(seq 0 $((count - 1))); do
        truncate -s "${mib}M" "$folder/$(name "$n").img"
        loop=$(losetup --find --show "$folder/$(name "$n").img")
        dmsetup create "$(name "$n")" --table "0 $((mib * 2048)) linear $loop 0"
        pvs="$pvs /dev/mapper/$(name "$n")"
    done
    # shellcheck disable=SC2086 - names without blanks
    vgcreate -qq -y "$vg" $pvs
    if [ $# -gt 4 ]; then
        lvcreate -qq -y --type thin-pool -L "${5}m" -c "$6" --poolmetadatasize 4m -Zn -n pool "$vg" \
            "/dev/mapper/$(name 0)"
    fi
    ;;
break)
    switch "$3" "0 $(sectors "$3") error"
    ;;
mend)
    loop=$(losetup --noheadings --output NAME --associated "$folder/$(name "$3").img")
    switch "$3" "0 $(sectors "$3") linear $loop 0"
    ;;
destroy)
    vgremove -qq -y "$vg" || true
    for image in "$folder/pv-$vg-"*.img; do
        [ -e "$image" ] || continue
        n=$(basename "$image" .img)
        dmsetup remove --retry "$n"
        losetup --detach "$(losetup --noheadings --output NAME --associated "$image")"
        rm "$image"
    done
    ;;
*)
    echo "lab-group: unknown verb $verb" >&2
    exit 2
    ;;
esac
