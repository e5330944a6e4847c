#!/bin/sh
# Volume groups for the domains. vg0 (first data disk): thin pool and much free space for thick
# volumes. vg1 (second data disk): the same in small, for domains that span groups. The pools zero
# new blocks, as by default: else a disk shows there what a volume had that is gone.
set -eu

if vgs vg0 vg1 >/dev/null 2>&1; then
    exec vgchange -q -ay vg0 vg1 # the lab boots again on disks it already had
fi
# One process for all: starting lvm is most of what a command costs under emulation.
lvm >/run/lab-storage.log 2>&1 <<'LVM'
pvcreate -y /dev/vdb /dev/vdc
vgcreate vg0 /dev/vdb
vgcreate vg1 /dev/vdc
lvcreate -y --type thin-pool -L 5g -c 64k --poolmetadatasize 16m -Zy -n pool vg0
lvcreate -y --type thin-pool -L 1g -c 64k --poolmetadatasize 8m -Zy -n pool vg1
LVM
lvs vg0/pool vg1/pool >/dev/null
