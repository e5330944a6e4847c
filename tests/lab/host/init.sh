#!/bin/sh
# First process of a booted lab: makes it a virtualisation host, then serves the agent's channel.
# A step that fails is noted and the rest goes on, so that the agent can tell what went wrong.
set -u
PATH=/snapvm/tests/lab/host/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root LANG=C.UTF-8 TERM=linux
PYTHONPYCACHEPREFIX=/var/cache/pycache
export PATH HOME LANG TERM PYTHONPYCACHEPREFIX
unset PYTHONDONTWRITEBYTECODE
failures=/run/lab-failures
host=/snapvm/tests/lab/host

step() {
    read -r uptime _ </proc/uptime
    echo "snapvm-lab: $uptime $*"
    "$@" || echo "$*: status $?" >>"$failures"
}

mount_all() {
    mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t tmpfs -o mode=755 run /run || return
    : >"$failures"
    # Made by nobody but systemd; without /dev/stdin Xen's block script waits for its lock for ever.
    ln -s /proc/self/fd /dev/fd && ln -s fd/0 /dev/stdin && ln -s fd/1 /dev/stdout &&
        ln -s fd/2 /dev/stderr
    mkdir -p /dev/pts /dev/shm /run/lock /run/pulse /var/lib/lab
    chmod 1777 /run/lock /run/pulse
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t tmpfs -o mode=1777 tmp /tmp
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share
}

name_host() {
    hostname lab && echo lab >/etc/hostname
    printf '127.0.0.1 localhost lab\n' >/etc/hosts
    ip link set lo up
    # A power cut may take the file away: the host is to be the same after it.
    [ -s /etc/machine-id ] || echo 6c61626c61626c61626c61626c61626c >/etc/machine-id
}

start_udev() {
    /usr/lib/systemd/systemd-udevd --daemon &&
        udevadm trigger --type=subsystems --action=add &&
        udevadm trigger --type=devices --action=add &&
        udevadm settle --timeout=90
}

start_libvirt() {
    # libvirt wants to move /dev into a mount namespace of its own, which only works under systemd.
    grep -q '^namespaces' /etc/libvirt/qemu.conf || echo 'namespaces = []' >>/etc/libvirt/qemu.conf
    # Xen's, which libvirt asks what it can do all the same: QEMU 7.2 of Debian 12 may hang then.
    chmod -f a-x /usr/libexec/qemu-system-i386
    mkdir -p /run/dbus && dbus-daemon --system --fork && virtlogd -d && libvirtd -d || return
    wait_for /run/libvirt/libvirt-sock
}

wait_for() {
    tries=0
    while [ ! -e "$1" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 300 ] || return 1
        sleep 0.1
    done
}

load_kvm() {
    for module in kvm-amd kvm-intel; do
        modprobe "$module" 2>/dev/null || continue
        python3 "$host/kvm_pin.py" &
        return 0
    done
    echo "snapvm-lab: no hardware virtualisation in here: domains will be emulated"
}

start_xen() {
    bin=$(echo /usr/lib/xen-4.*/bin)
    mount -t xenfs xenfs /proc/xen
    for module in xen-evtchn xen-gntdev xen-privcmd xen-gntalloc xen-blkback xen-netback; do
        modprobe "$module"
    done
    mkdir -p /run/xen /run/xenstored /var/lib/xen /var/log/xen
    /usr/sbin/xenstored --pid-file /run/xen/xenstored.pid 2>/dev/null ||
        "$bin"/xenstored --pid-file /run/xen/xenstored.pid || return
    "$bin"/xen-init-dom0 || return
    "$bin"/xenconsoled --pid-file=/run/xen/xenconsoled.pid
}

mount_all
flavour=$(sed -n 's/.*snapvm-lab=\([a-z]*\).*/\1/p' /proc/cmdline)
step name_host
step start_udev
step sh "$host/storage.sh"
case $flavour in
    kvm) step load_kvm && step start_libvirt ;;
    xen) step start_xen ;;
    *) echo "unknown flavour '$flavour'" >>"$failures" ;;
esac
step true

python3 "$host/agent.py" /dev/virtio-ports/snapvm.agent "$failures" &
agent=$!
# Waiting also reaps what daemons leave behind: this is process 1.
while kill -0 "$agent" 2>/dev/null; do wait "$agent"; done
echo "snapvm-lab: the agent ended"
sync
busybox poweroff -f
