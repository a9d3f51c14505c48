// SPDX-License-Identifier: GPL-2.0

//! What user space says of a device and can ask for again: the fields of `struct loop_info64`.

use super::flags::Flags;
use crate::kern::{
    ffi::loop_info64,
    uapi::{
        LoopInfo64,
        KEY_SIZE,
        NAME_SIZE, //
    },
};
use kernel::prelude::*;

/// What a device is set to.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Where the device begins in the file, in bytes.
    pub(crate) offset: u64,
    /// How long it is at most, in bytes; 0 is no limit.
    pub(crate) sizelimit: u64,
    /// The flags, as they are in force.
    pub(crate) flags: Flags,
    /// A name that means nothing to the kernel, NUL-terminated.
    pub(crate) name: [u8; NAME_SIZE],
}

impl Settings {
    /// What LOOP_CONFIGURE asks for; see [`new`](Self::new). `EINVAL` for flags that it may not set.
    pub(crate) fn from_configure(info: &loop_info64) -> Result<Self> {
        Self::new(info, Flags::from_configure(info.lo_flags)?)
    }

    /// What `info` asks for, with `flags` instead of its own.
    ///
    /// Fails with `EINVAL` for encryption, and with `EOVERFLOW` for an offset or a limit that no
    /// file can have. Mirrors `loop_set_status_from_info()`.
    pub(crate) fn new(info: &loop_info64, flags: Flags) -> Result<Self> {
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

    /// What user space is told of device `number`, but for what identifies the file.
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
    fn settings_come_back() {
        let mut asked = info();
        asked.lo_offset = i64::MAX as u64;
        asked.lo_sizelimit = 512;
        asked.lo_file_name = [b'x'; NAME_SIZE];
        let told = Settings::new(&asked, Flags::AUTOCLEAR).map(|settings| settings.info(7));
        assert!(told.is_ok());
        let Ok(told) = told else { return };
        assert_eq!(told.lo_number, 7);
        assert_eq!(told.lo_offset, i64::MAX as u64);
        assert_eq!(told.lo_sizelimit, 512);
        assert_eq!(told.lo_flags, 4);
        assert_eq!(told.lo_file_name[NAME_SIZE - 2], b'x');
        assert_eq!(told.lo_file_name[NAME_SIZE - 1], 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut asked = info();
        asked.lo_offset = 1 << 63;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EOVERFLOW));
        asked.lo_offset = 0;
        asked.lo_sizelimit = u64::MAX;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EOVERFLOW));
    }

    #[test]
    fn encryption_is_refused_first() {
        let mut asked = info();
        asked.lo_offset = u64::MAX;
        asked.lo_encrypt_type = 1;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EINVAL));
        asked.lo_encrypt_type = 0;
        asked.lo_encrypt_key_size = 33;
        assert!(matches!(Settings::new(&asked, Flags::default()), Err(e) if e == EINVAL));
    }
}
