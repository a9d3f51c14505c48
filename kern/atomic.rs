// SPDX-License-Identifier: GPL-2.0

//! Limits of atomic writes: writes that a power cut leaves done or not done, never in part
//! (`REQ_ATOMIC`). Calls no kernel function.

/// The limits of the atomic writes of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AtomicWrites {
    /// The length of the shortest one, in bytes: a power of two.
    pub(crate) unit_min: u32,
    /// The length of the longest one, in bytes: a power of two.
    pub(crate) unit_max: u32,
    /// The boundary that they must not cross: each multiple of this many bytes of the disk; 0 for
    /// none.
    pub(crate) boundary: u32,
}

impl AtomicWrites {
    /// Returns the limits of a device with blocks of `block_size` bytes that begins at `start`
    /// bytes of the disk that these limits are for; `None` if it has no atomic writes.
    ///
    /// Writes of the device are aligned to their length in the device. They must be so on the disk,
    /// too, because a disk may require it, and because a write that is aligned crosses no boundary.
    /// So no unit is longer than the alignment of `start`. `blk_stack_limits()` has the same rule
    /// for the boundary and for the shortest unit only.
    ///
    /// The length of the device limits nothing: a write that exceeds the device fails.
    pub(crate) fn at(self, start: u64, block_size: u32) -> Option<Self> {
        let is_multiple = |of: u32| of == 0 || start % u64::from(of) == 0;
        let alignment = match start {
            0 => u32::MAX,
            _ => 1_u32
                .checked_shl(start.trailing_zeros())
                .unwrap_or(u32::MAX),
        };
        let unit_min = self.unit_min.max(block_size);
        let boundary = if self.boundary == 0 {
            u32::MAX
        } else {
            self.boundary
        };
        let unit_max = self.unit_max.min(alignment).min(boundary);
        (self.unit_min != 0 && is_multiple(self.boundary) && unit_min <= unit_max).then_some(Self {
            unit_min,
            unit_max,
            ..self
        })
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_atomic))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    const DISK: AtomicWrites = AtomicWrites {
        unit_min: 1024,
        unit_max: 65536,
        boundary: 0,
    };

    fn units(limits: Option<AtomicWrites>) -> Option<(u32, u32)> {
        limits.map(|limits| (limits.unit_min, limits.unit_max))
    }

    #[test]
    fn an_offset_lowers_the_longest_unit() {
        assert_eq!(DISK.at(0, 512), Some(DISK));
        assert_eq!(DISK.at(1 << 20, 512), Some(DISK));
        assert_eq!(DISK.at(1 << 40, 512), Some(DISK));
        assert_eq!(units(DISK.at(4096, 512)), Some((1024, 4096)));
        assert_eq!(units(DISK.at(65536 + 8192, 512)), Some((1024, 8192)));
        assert_eq!(units(DISK.at(1024, 512)), Some((1024, 1024)));
        assert_eq!(DISK.at(512, 512), None);
        assert_eq!(DISK.at(65536 + 512, 512), None);
    }

    #[test]
    fn no_unit_is_shorter_than_a_block() {
        assert_eq!(units(DISK.at(0, 4096)), Some((4096, 65536)));
        assert_eq!(units(DISK.at(4096, 4096)), Some((4096, 4096)));
        assert_eq!(DISK.at(2048, 4096), None);
        assert_eq!(DISK.at(0, 1 << 17), None);
    }

    #[test]
    fn a_boundary_needs_an_aligned_offset() {
        let disk = AtomicWrites {
            boundary: 1 << 17,
            ..DISK
        };
        assert_eq!(disk.at(0, 512), Some(disk));
        assert_eq!(disk.at(1 << 18, 512), Some(disk));
        assert_eq!(disk.at(1 << 16, 512), None);
    }

    #[test]
    fn a_disk_without_atomic_writes_has_none() {
        let disk = AtomicWrites {
            unit_min: 0,
            unit_max: 0,
            boundary: 0,
        };
        assert_eq!(disk.at(0, 512), None);
    }
}
