// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of sizes, alignments and numbers of devices. Calls no kernel function.

use kernel::prelude::*;

/// The unit of disk sizes, in bytes.
pub(crate) const SECTOR_SIZE: u32 = 512;

/// The maximum number of minors of a disk: `DISK_MAX_PARTS`.
const DISK_MAX_PARTS: u32 = 256;

/// The number of bits of the minor in a device number: `MINORBITS`.
const MINORBITS: u32 = 20;

/// Returns the size of a device, in sectors of 512 bytes: the bytes from `offset` to the end of a
/// file of `file_size` bytes, but at most `sizelimit`, unless that is 0. Mirrors
/// `lo_calculate_size()`.
pub(crate) fn capacity(file_size: u64, offset: u64, sizelimit: u64) -> u64 {
    let available = file_size.saturating_sub(offset);
    let bytes = if sizelimit == 0 {
        available
    } else {
        available.min(sizelimit)
    };
    bytes / u64::from(SECTOR_SIZE)
}

/// Returns the length of `sectors` sectors of 512 bytes, in bytes.
pub(crate) fn bytes(sectors: u64) -> u64 {
    sectors.saturating_mul(u64::from(SECTOR_SIZE))
}

/// Returns whether a device at `offset` bytes of a file can use direct I/O in blocks of
/// `direct_block` bytes. Mirrors `lo_can_use_dio()`, but the blocks of the device may be smaller,
/// because requests that are not in whole direct blocks use the page cache.
pub(crate) fn fits_direct(offset: u64, direct_block: u32) -> bool {
    direct_block != 0 && offset % u64::from(direct_block) == 0
}

/// Returns the number of bits of a minor number that number up to `max_part` partitions. Fails with
/// `EINVAL` for more partitions than a disk can have.
pub(crate) fn part_shift(max_part: i32) -> Result<u32> {
    let shift = match u32::try_from(max_part) {
        Ok(max_part) => u32::BITS - max_part.leading_zeros(),
        Err(_) => 0,
    };
    if shift > DISK_MAX_PARTS.ilog2() {
        return Err(EINVAL);
    }
    Ok(shift)
}

/// Returns the maximum number of partitions of a device whose minors number them in `part_shift`
/// bits.
pub(crate) fn max_partitions(part_shift: u32) -> i32 {
    1_i32.checked_shl(part_shift).map_or(0, |minors| minors - 1)
}

/// Returns `max_loop` as a number of devices. Fails with `EINVAL` if it is negative, or if there
/// are not enough minors for so many devices.
pub(crate) fn max_loop(max_loop: i32, part_shift: u32) -> Result<u32> {
    let limit = (1_u32 << MINORBITS).checked_shr(part_shift).unwrap_or(0);
    u32::try_from(max_loop)
        .ok()
        .filter(|&count| count <= limit)
        .ok_or(EINVAL)
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_geometry))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_whole_sectors() {
        assert_eq!(capacity(4095, 0, 0), 7);
        assert_eq!(capacity(4096, 0, 0), 8);
        assert_eq!(capacity(511, 0, 0), 0);
    }

    #[test]
    fn capacity_respects_offset_and_limit() {
        assert_eq!(capacity(1 << 20, 4096, 0), 2040);
        assert_eq!(capacity(1 << 20, 4096, 8192), 16);
        assert_eq!(capacity(1 << 20, 4096, u64::MAX), 2040);
        assert_eq!(capacity(4096, 4096, 0), 0);
        assert_eq!(capacity(4096, 1 << 40, 512), 0);
    }

    #[test]
    fn direct_needs_an_aligned_offset() {
        assert!(fits_direct(0, 512));
        assert!(fits_direct(0, 4096));
        assert!(fits_direct(8192, 4096));
        assert!(!fits_direct(512, 4096));
        assert!(!fits_direct(0, 0));
    }

    #[test]
    fn part_shift_has_room_for_max_part() {
        assert_eq!(part_shift(0).ok(), Some(0));
        assert_eq!(part_shift(-1).ok(), Some(0));
        assert_eq!(part_shift(1).ok(), Some(1));
        assert_eq!(part_shift(15).ok(), Some(4));
        assert_eq!(part_shift(16).ok(), Some(5));
        assert_eq!(part_shift(255).ok(), Some(8));
        assert!(part_shift(256).is_err());
        assert_eq!(max_partitions(0), 0);
        assert_eq!(max_partitions(4), 15);
        assert_eq!(max_partitions(8), 255);
        assert!(part_shift(i32::MAX).is_err());
    }

    #[test]
    fn devices_fit_into_minors() {
        assert_eq!(max_loop(0, 0).ok(), Some(0));
        assert!(max_loop(-1, 8).is_err());
        assert_eq!(max_loop(1 << 20, 0).ok(), Some(1 << 20));
        assert!(max_loop((1 << 20) + 1, 0).is_err());
        assert_eq!(max_loop(1 << 12, 8).ok(), Some(1 << 12));
        assert!(max_loop((1 << 12) + 1, 8).is_err());
    }
}
