#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A device that begins inside its file (`losetup -o`, as for a partition of an image) works like any
# other. A flush has no position, so the offset must not matter to it. (It once did, and every fsync
# on such a device failed.)
. "$(dirname "$0")/lib.sh"

fsync_works() {
	local image device
	image=$(backing ext4 16)
	device=$(attach --offset 1M --direct-io="$1" "$image")
	dd if=/dev/urandom of="$device" bs=64k count=8 conv=fsync status=none
	dd if=/dev/urandom of="$device" bs=4k count=4 oflag=direct,sync status=none
}

data_lies_behind_the_offset() {
	local image device
	image=$(backing ext4 16)
	noise "$image" 16
	cp "$image" "$mnt/before"
	device=$(attach --offset 5M --sizelimit 3M --direct-io="$1" "$image")
	cmp -i 5M:0 -n $((3 << 20)) "$image" "$device"
	noise "$device" 3
	cmp -i 5M:0 -n $((3 << 20)) "$image" "$device"
	detach "$device"
	cmp -n $((5 << 20)) "$image" "$mnt/before"
	cmp -i 8M:8M "$image" "$mnt/before"
}

journal_commits() {
	local image device
	image=$(backing ext4 32)
	device=$(attach --offset 4M "$image")
	mkfs.ext4 -q "$device"
	mkdir "$mnt/fs"
	mount "$device" "$mnt/fs"
	dd if=/dev/urandom of="$mnt/fs/file" bs=4k count=64 oflag=sync status=none
	sha256sum "$mnt/fs/file" >"$mnt/sum"
	umount "$mnt/fs"
	fsck.ext4 -fn "$device"
	mount -o ro "$device" "$mnt/fs"
	sha256sum -c "$mnt/sum"
}

for dio in on off; do
	check "fsync on a device with an offset, direct-io=$dio" fsync_works $dio
	check "data is behind the offset and within the limit, direct-io=$dio" \
		data_lies_behind_the_offset $dio
done
check "ext4 commits its journal on a device with an offset" journal_commits
run_checks
