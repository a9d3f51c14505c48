// SPDX-License-Identifier: GPL-2.0

//! The files of the module that need no kernel, with the tests at their ends.

#![allow(dead_code)]

#[path = "../../flags.rs"]
mod flags;
#[path = "../../geometry.rs"]
mod geometry;
#[path = "../../settings.rs"]
mod settings;
#[path = "../../state.rs"]
mod state;

mod kern {
    pub(crate) mod ffi {
        //! What bindgen makes of `include/uapi/linux/loop.h`.

        use std::ops::{
            Deref,
            DerefMut, //
        };

        mod raw {
            #![allow(non_camel_case_types, non_upper_case_globals, unused)]
            include!(env!("LOOP_BINDINGS"));
        }

        pub(crate) use raw::loop_info64;

        #[derive(Default)]
        pub(crate) struct LoopInfo64(loop_info64);

        impl Deref for LoopInfo64 {
            type Target = loop_info64;

            fn deref(&self) -> &loop_info64 {
                &self.0
            }
        }

        impl DerefMut for LoopInfo64 {
            fn deref_mut(&mut self) -> &mut loop_info64 {
                &mut self.0
            }
        }

        /// The flags that `flags.rs` spells as numbers are those of the kernel's header.
        #[test]
        fn flags_are_those_of_the_header() {
            use crate::flags::Flags;

            assert_eq!(Flags::READ_ONLY.as_raw(), raw::LO_FLAGS_READ_ONLY);
            assert_eq!(Flags::AUTOCLEAR.as_raw(), raw::LO_FLAGS_AUTOCLEAR);
            assert_eq!(Flags::PARTSCAN.as_raw(), raw::LO_FLAGS_PARTSCAN);
            assert_eq!(Flags::DIRECT_IO.as_raw(), raw::LO_FLAGS_DIRECT_IO);
        }
    }
}
