#!/bin/sh
# mmdebstrap customize hook: turns the finished tree ($1) into an ext4 image and a tar of boot files.
# Both results are files that the caller opened ($2 image, $3 tar, as /proc/self/fd/N): that works
# as root and inside mmdebstrap's unprivileged user namespace alike, whoever owns the cache folder.
set -eu
tree=$1 image=$2 boot=$3

# Debian's maintainer scripts leave caches that nobody needs in a disposable machine.
rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/* "$tree"/var/log/*.log
mkdir -p "$tree/snapvm" "$tree/share"
cat >"$tree/sbin/lab-init" <<'INIT'
#!/bin/sh
# The only part of the lab inside the base image: finds the repository and runs the real init.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro repo /snapvm
exec /bin/sh /snapvm/tests/lab/host/init.sh
INIT
chmod 755 "$tree/sbin/lab-init"
rm -f "$tree/etc/hostname" "$tree/etc/resolv.conf"

# The lab keeps bytecode in a folder of its own (the checkout is read-only), where Python looks for
# that of its library too: compiling it anew took 9 s at the first import.
mkdir -p "$tree/var/cache/pycache"
(cd "$tree" && find usr/lib/python3* -name '*.pyc' -print0 | tar -c --null -T -) |
    tar -x -C "$tree/var/cache/pycache" --transform 's,__pycache__/,,'

kernel=$(basename "$tree"/boot/vmlinuz-*)
version=${kernel#vmlinuz-}
# The lab's own QEMU, with what it loads, runs on the host too.
qemu=usr/bin/qemu-system-x86_64
libraries=$(chroot "$tree" ldd "/$qemu" | sed -n 's,.* => /\([^ ]*\) .*,\1,p')
tar -C "$tree" -c -h -f "$boot" \
    "boot/$kernel" "boot/$(basename "$tree"/boot/xen-4.*-*.gz)" usr/bin/busybox \
    "$qemu" $libraries lib64/ld-linux-x86-64.so.2 usr/share/qemu usr/share/seabios \
    --exclude='*/build' --exclude='*/source' "usr/lib/modules/$version"

# mmdebstrap keeps /proc, /sys and /dev mounted in the tree while hooks run: a plain (not recursive)
# bind mount shows the tree without them.
bare=$(mktemp -d)
unshare --mount sh -euc '
    mount --make-rprivate / 2>/dev/null || true
    mount --bind "$1" "$2"
    mke2fs -q -F -t ext4 -m 0 -L snapvm-lab -E lazy_itable_init=1,lazy_journal_init=1 -d "$2" "$3"
' sh "$tree" "$bare" "$image"
rmdir "$bare"
