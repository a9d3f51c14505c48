#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# losetup lists, attaches, finds and detaches devices as documented, and each error gives the
# message of the C driver's error code, because losetup and scripts act upon some of them. attach.sh
# has the basic cases; losetup_change.sh changes bound devices.
. "$(dirname "$0")/lib.sh"

# Makes a new image of random data, and a copy to compare with.
noisy() {
	local image
	image=$(backing "$1" 4)
	noise "$image" 4
	cp "$image" "$scratch/copy"
	echo "$image"
}

all_columns() {
	local image device
	image=$(backing ext4 8)
	device=$(attach -r -P -o 1M --sizelimit 2M -b 4096 --direct-io=on --loop-ref 'the reference' "$image")
	equal row "$(row "$device" NAME AUTOCLEAR BACK-FILE BACK-INO BACK-MAJ:MIN MAJ:MIN MAJ MIN)" \
		"$device 0 $image $(stat -c '%i %Hd:%Ld' "$image") 7:${device#/dev/loop} 7 ${device#/dev/loop}"
	equal row "$(row "$device" OFFSET SIZELIMIT PARTSCAN RO DIO LOG-SEC REF)" \
		"1048576 2097152 1 1 1 4096 the\\x20reference"
	# The reference is the name that the driver keeps; backing_file still shows the file.
	equal backing_file "$(attribute "$device" loop/backing_file)" "$image"
	equal 'columns' "$(losetup --output-all -l | head -n 1 | wc -w)" 17
}

json() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach -o 512 "$image")
	losetup --json --list --output-all >"$scratch/json"
	python3 - "$scratch/json" "$device" "$image" <<-'EOT'
		import json, os, sys
		(loop,) = json.load(open(sys.argv[1]))["loopdevices"]
		device, image = sys.argv[2:]
		wanted = {
		    "name": device, "back-file": image, "ref": image, "back-ino": os.stat(image).st_ino,
		    "maj:min": f"7:{device[9:]}", "offset": 512, "sizelimit": 0, "autoclear": False,
		    "partscan": False, "ro": False, "dio": False, "log-sec": 512,
		}
		got = {name: loop[name] for name in wanted}
		assert got == wanted, f"got {got}, wanted {wanted}"
	EOT
}

lists() {
	local image other first second
	image=$(backing tmpfs 8)
	other=$(backing tmpfs 8 other)
	equal 'none' "$(losetup -a; losetup -l; losetup)" ''
	first=$(attach "$image")
	second=$(attach -o 1M "$image")
	attach "$other" >/dev/null
	equal '-a' "$(losetup -a | wc -l)" 3
	equal '-a' "$(losetup -a | grep "^$second:")" \
		"$second: [$(printf %04d "$(stat -c %d "$image")")]:$(stat -c %i "$image") ($image), offset 1048576"
	equal 'without arguments' "$(losetup | wc -l)" 4
	equal '-j' "$(losetup -nO NAME -j "$image" | sort | xargs)" "$first $second"
	equal '-j -o' "$(losetup -nO NAME -j "$image" -o 1M | xargs)" "$second"
	equal '-j -o 0' "$(losetup -nO NAME -j "$image" -o 0 | xargs)" "$first"
	equal '-j -o elsewhere' "$(losetup -nO NAME -j "$image" -o 512)" ''
	equal '-j no file' "$(losetup -j "$image.not")" ''
}

detach_many() {
	local image devices number
	image=$(backing tmpfs 1)
	for number in {0..5}; do devices[number]=$(attach "$image"); done
	udevadm settle
	losetup -d "${devices[0]}" "${devices[1]}"
	wait_for 10 unbound "${devices[0]}"
	wait_for 10 unbound "${devices[1]}"
	equal left "$(losetup -nO NAME | wc -l)" 4
	# After a failure losetup continues with the other devices, but reports the failure.
	refuse "${devices[0]}: detach failed: No such device or address" losetup -d "${devices[0]}" "${devices[2]}"
	wait_for 10 unbound "${devices[2]}"
	losetup -D
	wait_for 10 nothing_bound || fail "bound after losetup -D"
	losetup -D
}

# Files on a read-only file system, and -r, make devices read-only.
read_only() {
	local image device
	image=$(noisy tmpfs)
	device=$(attach -r "$image")
	equal ro "$(attribute "$device" ro) $(row "$device" RO)" '1 1'
	refuse 'Operation not permitted' dd if=/dev/zero of="$device" count=1 status=none
	detach "$device"
	mount -o remount,ro "$scratch/tmpfs"
	device=$(attach "$image")
	mount -o remount,rw "$scratch/tmpfs"
	equal ro "$(attribute "$device" ro) $(row "$device" RO)" '1 1'
	refuse 'Operation not permitted' dd if=/dev/zero of="$device" count=1 status=none
	cmp "$device" "$scratch/copy"
	detach "$device"
	# The next attach is not affected.
	device=$(attach "$image")
	equal ro "$(attribute "$device" ro) $(row "$device" RO)" '0 0'
}

no_overlap() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach -o 1M --sizelimit 2M "$image")
	equal 'the same' "$(attach -L -o 1M --sizelimit 2M "$image")" "$device"
	refuse "$image: overlapping loop device exists" losetup -L -f "$image"
	refuse "$image: overlapping loop device exists" losetup -L -f -o 2M "$image"
	refuse "$image: overlapping loop device exists" losetup -L -f --sizelimit 2M "$image"
	equal 'one bound' "$(losetup -nO NAME | xargs)" "$device"
	attach -L -o 3M --sizelimit 1M "$image"
	attach -L --sizelimit 1M "$image"
	equal 'bound' "$(losetup -nO NAME | wc -l)" 3
}

# A partial sector at the end is not part of the device.
odd_sizes() {
	local image device
	image=$(backing tmpfs 0)
	truncate -s 1300 "$image"
	device=$(attach "$image" 2>"$scratch/warning")
	grep -q "$image: Warning: file does not end on a 512-byte sector boundary; the remaining end" "$scratch/warning"
	bytes "$device" 1024
	detach "$device"
	truncate -s 400 "$image"
	device=$(attach "$image" 2>"$scratch/warning")
	grep -q "Warning: file " "$scratch/warning"
	bytes "$device" 0
	detach "$device"
	truncate -s 1M "$image"
	device=$(attach --sizelimit 1500 "$image" 2>"$scratch/warning")
	grep -q "Warning: file " "$scratch/warning"
	bytes "$device" 1024
	equal sizelimit "$(row "$device" SIZELIMIT)" 1500
	detach "$device"
	device=$(attach -o 513 "$image")
	bytes "$device" $(((1 << 20) - 1024))
	detach "$device"
	# An offset beyond the end is no error; the device is empty.
	device=$(attach -o 5M "$image")
	bytes "$device" 0
	detach "$device"
	device=$(attach -o 512k --sizelimit 1G "$image")
	bytes "$device" $((512 << 10))
	equal sizelimit "$(row "$device" SIZELIMIT)" $((1 << 30))
}

errors() {
	local image device
	image=$(backing tmpfs 1)
	device=$(attach "$image")
	refuse "$image: failed to set up loop device: Device or resource busy" losetup "$device" "$image"
	refuse "/not: failed to set up loop device: No such file or directory" losetup -f /not
	refuse "/: failed to set up loop device: Is a directory" losetup -f /
	refuse "/dev/null: failed to set up loop device: Invalid argument" losetup -f /dev/null
	refuse "/dev/loop7: failed to set up loop device: Invalid argument" losetup -f /dev/loop7
	refuse "$(losetup -f): failed to set up loop device: Bad file descriptor" losetup -f "$(losetup -f)"
	refuse "$image: failed to set up loop device: Value too large" losetup -f -o 8E "$image"
	refuse "$image: failed to set up loop device: Inappropriate ioctl for device" losetup /dev/null "$image"
	refuse "/dev/loop99: detach failed: No such file or directory" losetup -d /dev/loop99
	equal 'bound' "$(losetup -nO NAME | xargs)" "$device"
	detach "$device"
	refuse "$device: detach failed: No such device or address" losetup -d "$device"
	refuse "$device: set capacity failed: No such device or address" losetup -c "$device"
	refuse "$device: set direct io failed: No such device or address" losetup --direct-io=on "$device"
	refuse "$device: set logical block size failed: No such device or address" losetup -b 1024 "$device"
}

# Concurrent processes find devices that another one binds first, and try the next.
many_at_once() {
	local number job jobs=()
	backing tmpfs 1
	for number in {1..16}; do
		attach "$scratch/tmpfs/image" >"$mnt/$number" &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do wait "$job"; done
	equal 'different devices' "$(cat "$mnt"/* | sort -u | wc -l)" 16
	equal 'bound' "$(losetup -nO NAME | sort | xargs)" "$(cat "$mnt"/* | sort | xargs)"
}

# Programs older than LOOP_CONFIGURE attach in three steps, as losetup does after EINVAL.
legacy_steps() {
	local image device
	image=$(noisy ext4)
	udevadm settle
	# The second ioctl, after LOOP_CTL_GET_FREE, fails.
	device=$(strace -qq -o "$scratch/trace" -e trace=ioctl -e inject=ioctl:error=EINVAL:when=2 \
		losetup -f --show -P -o 1M --sizelimit 2M -b 4096 "$image")
	equal steps "$(grep -Eo 'LOOP_(CONFIGURE|SET_[A-Z0-9_]+)' "$scratch/trace" | xargs)" \
		"LOOP_CONFIGURE LOOP_SET_FD LOOP_SET_BLOCK_SIZE LOOP_SET_STATUS64"
	equal row "$(row "$device" BACK-FILE OFFSET SIZELIMIT PARTSCAN RO DIO LOG-SEC)" \
		"$image 1048576 2097152 1 0 0 4096"
	bytes "$device" $((2 << 20))
	cmp -n 2M -i 0:1M "$device" "$scratch/copy"
}

check "all columns of --list" all_columns
check "--json" json
check "-a, -l and -j list the right devices" lists
check "-d of several, and -D" detach_many
check "-r and read-only files make devices read-only" read_only
check "-L" no_overlap
check "odd sizes, offsets and limits" odd_sizes
check "errors" errors
check "many at once" many_at_once
check "the steps of programs without LOOP_CONFIGURE" legacy_steps
run_checks
