#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# When an image is truncated under its device, reads beyond its end fail with EIO and others
# succeed. When the image has its old size again, all succeed. losetup --set-capacity updates the
# size of the device.
. "$(dirname "$0")/lib.sh"

read_at() { dd if="$1" of=/dev/null bs=64k count=1 skip="$(($2 / 65536))" iflag=direct status=none; }

truncated() {
	local image device
	image=$(backing "$1" 8)
	noise "$image" 8
	cp "$image" "$scratch/before"
	device=$(attach --direct-io="$2" "$image")
	truncate -s 4M "$image"
	read_at "$device" $((3 << 20))
	refuse 'Input/output error' read_at "$device" $((5 << 20))
	refuse 'Input/output error' read_at "$device" $((7 << 20))
	# Across the end.
	truncate -s $(((4 << 20) + 4096)) "$image"
	refuse 'Input/output error' read_at "$device" $((4 << 20))
	cmp -n 4M "$scratch/before" "$device"
	truncate -s 8M "$image"
	cmp -n 4M "$scratch/before" "$device"
	cmp -i 4M:0 -n 4M <(dd if="$device" bs=1M iflag=direct status=none) /dev/zero
	dd if="$scratch/before" of="$device" bs=1M oflag=direct status=none
	cmp "$scratch/before" "$device"
}

# leftover KIND on|off: a read across the end of the file fails, and fills the rest of its buffer
# with zeroes: the memory had other content, which the submitter must not see.
leftover() {
	local image device
	image=$(backing "$1" 8)
	noise "$image" 8
	device=$(attach --direct-io="$2" "$image")
	truncate -s $(((4 << 20) + 4096)) "$image"
	python3 - "$device" "$image" <<-'EOT'
		import errno, mmap, os, sys
		device = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
		memory = mmap.mmap(-1, 64 << 10)
		memory[:] = b"secret!!" * (8 << 10)
		try:
		    sys.exit(f"read {os.preadv(device, [memory], 4 << 20)} bytes")
		except OSError as error:
		    if error.errno != errno.EIO:
		        raise
		with open(sys.argv[2], "rb") as image:
		    image.seek(4 << 20)
		    wanted = image.read()
		if memory[:4096] != wanted:
		    sys.exit("data before the end was not read")
		if any(memory[4096:]):
		    sys.exit(f"in memory: {memory[4096:4112]}")
	EOT
	detach "$device"
}

set_capacity() {
	local image device
	image=$(backing ext4 8)
	device=$(attach "$image")
	truncate -s 4M "$image"
	losetup --set-capacity "$device"
	equal size "$(attribute "$device" size)" $((4 << 11))
	truncate -s 16M "$image"
	losetup --set-capacity "$device"
	equal size "$(attribute "$device" size)" $((16 << 11))
	read_at "$device" $((15 << 20))
}

# A partial sector or block at the end of the image is not part of the device.
odd_size() {
	local image device size
	image=$(backing tmpfs 0)
	for size in 511 512 1000 4095 4097 1048575; do
		truncate -s 0 "$image"
		head -c "$size" /dev/urandom >"$image"
		device=$(attach --direct-io="$1" "$image")
		equal "size of $size bytes" "$(attribute "$device" size)" $((size / 512))
		cmp -n $((size / 512 * 512)) "$image" "$device"
		detach "$device"
	done
}

check "a truncated image: ext4, direct" truncated ext4 on
check "a truncated image: ext4, buffered" truncated ext4 off
check "a truncated image: XFS, direct" truncated xfs on
check "a truncated image: tmpfs" truncated tmpfs off
check "the unread rest of a read is zeroes: ext4, direct" leftover ext4 on
check "the unread rest of a read is zeroes: ext4, buffered" leftover ext4 off
check "the unread rest of a read is zeroes: tmpfs" leftover tmpfs off
check "the size follows the image" set_capacity
check "images with a partial sector, direct" odd_size on
check "images with a partial sector, buffered" odd_size off
run_checks
