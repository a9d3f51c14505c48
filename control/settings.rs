// SPDX-License-Identifier: GPL-2.0

//! The settings of a device: the fields of `struct loop_info64` that user space sets and reads.

use super::flags::Flags;
use crate::kern::uapi::{
    loop_info64,
    LoopInfo64,
    KEY_SIZE,
    NAME_SIZE, //
};
use kernel::prelude::*;

/// The settings of a device.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The position of the device in the backing file, in bytes.
    pub(crate) offset: u64,
    /// The maximum size of the device, in bytes; 0 for no limit.
    pub(crate) sizelimit: u64,
    /// The flags in force.
    pub(crate) flags: Flags,
    /// A name that only user space interprets, NUL-terminated.
    pub(crate) name: [u8; NAME_SIZE],
}

impl Settings {
    /// Makes the settings of LOOP_CONFIGURE. Fails as [`new`](Self::new), and with `EINVAL` for
    /// flags that LOOP_CONFIGURE may not set.
    pub(crate) fn from_configure(info: &loop_info64) -> Result<Self> {
        Self::new(info, Flags::from_configure(info.lo_flags)?)
    }

    /// Makes the settings of `info`, with `flags` instead of its own flags.
    ///
    /// Fails with `EINVAL` for encryption, and with `EOVERFLOW` for an offset or a limit that no
    /// file can have. Mirrors `loop_set_status_from_info()`.
    fn new(info: &loop_info64, flags: Flags) -> Result<Self> {
        if info.lo_encrypt_key_size > KEY_SIZE as u32 || info.lo_encrypt_type != 0 {
            return Err(EINVAL);
        }
        if i64::try_from(info.lo_offset).is_err() || i64::try_from(info.lo_sizelimit).is_err() {
            return Err(EOVERFLOW);
        }
        let mut name = info.lo_file_name;
        if let Some(last) = name.last_mut() {
            *last = 0;
        }
        Ok(Self {
            offset: info.lo_offset,
            sizelimit: info.lo_sizelimit,
            flags,
            name,
        })
    }

    /// Makes the settings that LOOP_SET_STATUS64 with `info` gives a device with these settings.
    /// Fails as [`new`](Self::new).
    pub(crate) fn changed_by(&self, info: &loop_info64) -> Result<Self> {
        Self::new(info, self.flags.updated(info.lo_flags))
    }

    /// Returns whether a device with these settings is at another place of the file, or has another
    /// size limit, than one with the settings `other`.
    pub(crate) fn is_elsewhere_than(&self, other: &Self) -> bool {
        (self.offset, self.sizelimit) != (other.offset, other.sizelimit)
    }

    /// Returns the status of device `number` for user space, without the identity of the file.
    pub(crate) fn info(&self, number: u32) -> LoopInfo64 {
        let mut info = LoopInfo64::default();
        info.lo_number = number;
        info.lo_offset = self.offset;
        info.lo_sizelimit = self.sizelimit;
        info.lo_flags = self.flags.as_raw();
        info.lo_file_name = self.name;
        info
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_settings))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    fn info() -> LoopInfo64 {
        LoopInfo64::default()
    }

    #[test]
    fn info_reports_the_settings() {
        let mut asked = info();
        asked.lo_offset = i64::MAX as u64;
        asked.lo_sizelimit = 512;
        asked.lo_file_name = [b'x'; NAME_SIZE];
        let reported = Settings::new(&asked, Flags::AUTOCLEAR).map(|settings| settings.info(7));
        assert!(reported.is_ok());
        let Ok(reported) = reported else { return };
        assert_eq!(reported.lo_number, 7);
        assert_eq!(reported.lo_offset, i64::MAX as u64);
        assert_eq!(reported.lo_sizelimit, 512);
        assert_eq!(reported.lo_flags, 4);
        assert_eq!(reported.lo_file_name[NAME_SIZE - 2], b'x');
        assert_eq!(reported.lo_file_name[NAME_SIZE - 1], 0);
    }

    #[test]
    fn offsets_beyond_llong_max_overflow() {
        let mut asked = info();
        asked.lo_offset = 1 << 63;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EOVERFLOW));
        asked.lo_offset = 0;
        asked.lo_sizelimit = u64::MAX;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EOVERFLOW));
    }

    #[test]
    fn encryption_is_invalid_before_overflow() {
        let mut asked = info();
        asked.lo_offset = u64::MAX;
        asked.lo_encrypt_type = 1;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EINVAL));
        asked.lo_encrypt_type = 0;
        asked.lo_encrypt_key_size = 33;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EINVAL));
    }
}
