#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# initramfs.sh DISK CMDLINE TREE NAME: started as process 1 of fresh mount, pid, uts, ipc and cgroup namespaces and in
# the guest's network namespace; does what firmware and initramfs do for an ostree deployment, then becomes its init.
# DISK: where the disk is mounted. CMDLINE: file with the kernel command line. TREE: what serves as the initramfs'
# root; its own ostree-prepare-root and prepare-root.conf assemble the root. $MACHINE_NET: the machine's net namespace.
set -eu
disk=$1 cmdline=$2 tree=$3 name=$4
if [ "$(readlink /proc/self/ns/net)" = "${MACHINE_NET:?}" ]; then
  echo "refusing: this is the machine's own network namespace" >&2
  exit 9
fi
mount --make-rprivate /
mount --bind "$tree" "$tree"
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$tree/run"
mount -t proc -o nosuid,nodev,noexec proc "$tree/proc"
mount --bind "$cmdline" "$tree/proc/cmdline"
# The guest is root on the machine's kernel: never let it turn the machine's knobs.
for knobs in sys sysrq-trigger irq bus; do
  [ -e "$tree/proc/$knobs" ] || continue
  mount --bind "$tree/proc/$knobs" "$tree/proc/$knobs"
  mount -o remount,bind,ro,nosuid,nodev,noexec "$tree/proc/$knobs"
done
mount --bind "$disk" "$tree/sysroot"
mount --make-private "$tree/sysroot"
# It works in a directory of one fixed name, which hosts that boot at the same time from the same tree would share.
flock "$tree.lock" chroot "$tree" /usr/lib/ostree/ostree-prepare-root /sysroot

root=$tree/sysroot
mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
while read -r device mode numbers; do
  # shellcheck disable=SC2086
  mknod -m "$mode" "$root/dev/$device" c $numbers
done <<DEVICES
null 666 1 3
zero 666 1 5
full 666 1 7
random 666 1 8
urandom 666 1 9
tty 666 5 0
fuse 666 10 229
console 600 1 3
DEVICES
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
# Every boot has an id of its own; journalctl --list-boots and -b stand on it.
cat /proc/sys/kernel/random/uuid > "$tree/run/.boot_id"
chmod 444 "$tree/run/.boot_id"
mount --bind "$tree/run/.boot_id" "$tree/proc/sys/kernel/random/boot_id"
mount -o remount,bind,ro "$tree/proc/sys/kernel/random/boot_id"
mount --move "$tree/run" "$root/run"
mount --move "$tree/proc" "$root/proc"
hostname "$name"
cd "$root"
mount --move . /
# The options are separate words, as a kernel passes them on.
# shellcheck disable=SC2046
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin container=lashd /sbin/init $(cat proc/cmdline)
