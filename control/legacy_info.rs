// SPDX-License-Identifier: GPL-2.0

//! `struct loop_info`, the predecessor of `struct loop_info64`, of 64-bit and of 32-bit programs.
//!
//! Its fields are fewer and narrower. It has no size limit. Its fields for encryption are ignored,
//! because loop devices no longer support encryption.

use crate::kern::uapi::{
    CompatLoopInfo,
    LoopInfo,
    LoopInfo64, //
};
use kernel::prelude::*;

/// A `struct loop_info`, native or compat.
pub(crate) trait LegacyInfo: Sized {
    /// Converts the argument of LOOP_SET_STATUS: `loop_info64_from_old()`.
    fn to_info64(&self) -> LoopInfo64;

    /// Makes the result of LOOP_GET_STATUS: `loop_info64_to_old()`. Fails with `EOVERFLOW` if a
    /// value does not fit.
    fn from_info64(info: &LoopInfo64) -> Result<Self>;
}

macro_rules! legacy_info {
    ($($name:ident)*) => {$(
        impl LegacyInfo for $name {
            fn to_info64(&self) -> LoopInfo64 {
                let mut info = LoopInfo64::default();
                // A negative offset becomes one beyond `LLONG_MAX`, which is refused.
                info.lo_offset = i64::from(self.lo_offset) as u64;
                info.lo_flags = self.lo_flags as u32;
                info.lo_file_name = self.lo_name;
                info
            }

            fn from_info64(info: &LoopInfo64) -> Result<Self> {
                let mut old = Self::default();
                old.lo_number = info.lo_number as i32;
                old.lo_device = fit(info.lo_device)?;
                old.lo_inode = fit(info.lo_inode)?;
                old.lo_rdevice = fit(info.lo_rdevice)?;
                old.lo_offset = fit(info.lo_offset)?;
                old.lo_flags = info.lo_flags as i32;
                old.lo_name = info.lo_file_name;
                Ok(old)
            }
        }
    )*};
}

legacy_info! { LoopInfo CompatLoopInfo }

/// Narrows a value. Fails with `EOVERFLOW` if it does not fit.
fn fit<T: TryFrom<u64>>(value: u64) -> Result<T> {
    T::try_from(value).map_err(|_| EOVERFLOW)
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_legacy_info))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn to_info64_ignores_encryption() {
        let mut old = LoopInfo::default();
        old.lo_offset = 512;
        old.lo_flags = 4;
        old.lo_encrypt_type = 18;
        old.lo_encrypt_key_size = 99;
        old.lo_name = [b'x'; 64];
        let info = old.to_info64();
        assert_eq!(info.lo_offset, 512);
        assert_eq!(info.lo_sizelimit, 0);
        assert_eq!(info.lo_flags, 4);
        assert_eq!(info.lo_file_name, [b'x'; 64]);
        assert_eq!(info.lo_encrypt_type, 0);
        assert_eq!(info.lo_encrypt_key_size, 0);
    }

    #[test]
    fn a_negative_offset_is_beyond_llong_max() {
        let mut old = CompatLoopInfo::default();
        old.lo_offset = -1;
        assert_eq!(old.to_info64().lo_offset, u64::MAX);
    }

    #[test]
    fn from_info64_keeps_values_that_fit() {
        let mut info = LoopInfo64::default();
        info.lo_number = 7;
        info.lo_device = 0xffff;
        info.lo_inode = u64::from(u32::MAX);
        info.lo_rdevice = 0x700;
        info.lo_offset = 0x7fff_ffff;
        info.lo_sizelimit = u64::MAX;
        info.lo_flags = 28;
        let old = CompatLoopInfo::from_info64(&info).ok();
        assert!(old.is_some());
        let Some(old) = old else { return };
        assert_eq!(old.lo_number, 7);
        assert_eq!(old.lo_device, 0xffff);
        assert_eq!(old.lo_inode, u32::MAX);
        assert_eq!(old.lo_rdevice, 0x700);
        assert_eq!(old.lo_offset, 0x7fff_ffff);
        assert_eq!(old.lo_flags, 28);
    }

    /// Returns whether the native and the compat structure have room for zeroes after `change`.
    fn fits(change: fn(&mut LoopInfo64)) -> (bool, bool) {
        let mut info = LoopInfo64::default();
        change(&mut info);
        (
            LoopInfo::from_info64(&info).is_ok(),
            CompatLoopInfo::from_info64(&info).is_ok(),
        )
    }

    #[test]
    fn from_info64_fails_for_values_that_do_not_fit() {
        assert_eq!(fits(|info| info.lo_offset = 1 << 31), (false, false));
        assert_eq!(fits(|info| info.lo_inode = 1 << 32), (true, false));
        #[cfg(target_arch = "x86_64")]
        assert_eq!(fits(|info| info.lo_device = 1 << 16), (true, false));
        #[cfg(target_arch = "x86_64")]
        assert_eq!(fits(|info| info.lo_rdevice = 1 << 16), (true, false));
    }
}
