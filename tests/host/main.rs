// SPDX-License-Identifier: GPL-2.0

//! The files of the module that need no kernel, and their tests.

#![allow(dead_code)]

#[path = "../../control"]
mod control {
    pub(crate) mod flags;
    mod geometry;
    mod legacy_info;
    mod settings;
    mod state;
}

#[path = "../../datapath"]
mod datapath {
    mod backoff;
    mod extents;
    mod offload;
    mod retry;
    mod tunables;
}

#[path = "../.."]
mod kern {
    #[path = "kern/atomic.rs"]
    mod atomic;

    pub(crate) mod ffi {
        //! The bindings of `include/uapi/linux/loop.h`.

        mod raw {
            #![allow(non_camel_case_types, non_upper_case_globals, unused)]
            include!(env!("LOOP_BINDINGS"));
        }

        pub(crate) use raw::{
            __kernel_old_dev_t as OldDev,
            *, //
        };

        /// Checks the flags, which `flags.rs` writes as numbers, against the kernel's header.
        #[test]
        fn flags_are_those_of_the_header() {
            use crate::control::flags::Flags;

            assert_eq!(Flags::READ_ONLY.as_raw(), raw::LO_FLAGS_READ_ONLY);
            assert_eq!(Flags::AUTOCLEAR.as_raw(), raw::LO_FLAGS_AUTOCLEAR);
            assert_eq!(Flags::PARTSCAN.as_raw(), raw::LO_FLAGS_PARTSCAN);
            assert_eq!(Flags::DIRECT_IO.as_raw(), raw::LO_FLAGS_DIRECT_IO);
        }
    }

    #[allow(unused_imports)]
    #[path = "kern/uapi.rs"]
    pub(crate) mod uapi;
}
