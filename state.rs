// SPDX-License-Identifier: GPL-2.0

//! The states of a loop device.
//!
//! ```text
//!             LOOP_SET_FD, LOOP_CONFIGURE
//!   Unbound ------------------------------> Bound
//!    |   ^                                    |  LOOP_CLR_FD by the only opener, or
//!    |   |   unbind() at the last close       v  last close with AUTOCLEAR
//!    |   +--------------------------------- Rundown     cannot be opened
//!    |  LOOP_CTL_REMOVE without an opener
//!    v
//!   Deleting   cannot be opened; no way back
//! ```

#![forbid(unsafe_code)]

use kernel::prelude::*;

/// The state of a device, with what it is bound to, `B`.
///
/// The transitions below are the only way to change it.
pub(crate) enum State<B> {
    /// Nothing behind it.
    Unbound,
    /// In use.
    Bound(B),
    /// On the way from bound to unbound: I/O of those who have it open is still served.
    Rundown(B),
    /// About to be removed.
    Deleting,
}

impl<B> State<B> {
    /// Lets an `Unbound` device become `Bound`; `EBUSY` in any other state.
    pub(crate) fn vacancy(&mut self) -> Result<Vacancy<'_, B>> {
        if let Self::Unbound = self {
            // INVARIANT: As seen.
            Ok(Vacancy(self))
        } else {
            Err(EBUSY)
        }
    }

    /// What the device is bound to, for those who use it; `ENXIO` where it is not `Bound`.
    pub(crate) fn bound(&mut self) -> Result<&mut B> {
        match self {
            Self::Bound(binding) => Ok(binding),
            _ => Err(ENXIO),
        }
    }

    /// What the device is or was bound to until a moment ago, for those who look.
    pub(crate) fn binding(&self) -> Option<&B> {
        match self {
            Self::Bound(binding) | Self::Rundown(binding) => Some(binding),
            Self::Unbound | Self::Deleting => None,
        }
    }

    /// `Bound` becomes `Rundown`; other states stay.
    pub(crate) fn run_down(&mut self) {
        *self = match core::mem::replace(self, Self::Unbound) {
            Self::Bound(binding) => Self::Rundown(binding),
            other => other,
        };
    }

    /// `Rundown` becomes `Unbound` and gives what it was bound to, to be dropped when no lock is
    /// held; other states stay.
    pub(crate) fn unbind(&mut self) -> Option<B> {
        match core::mem::replace(self, Self::Unbound) {
            Self::Rundown(binding) => Some(binding),
            other => {
                *self = other;
                None
            }
        }
    }

    /// `Unbound` becomes `Deleting`; `EBUSY` from anywhere else.
    pub(crate) fn delete(&mut self) -> Result {
        let Self::Unbound = self else {
            return Err(EBUSY);
        };
        *self = Self::Deleting;
        Ok(())
    }

    /// Whether the device has nothing behind it and may get something.
    pub(crate) fn is_unbound(&self) -> bool {
        matches!(self, Self::Unbound)
    }

    /// Whether the device is being run down.
    pub(crate) fn is_rundown(&self) -> bool {
        matches!(self, Self::Rundown(_))
    }

    /// Whether the device may be opened.
    pub(crate) fn may_open(&self) -> bool {
        matches!(self, Self::Unbound | Self::Bound(_))
    }
}

/// A device that can be bound.
///
/// # Invariants
///
/// The state is `Unbound`.
pub(crate) struct Vacancy<'a, B>(&'a mut State<B>);

impl<B> Vacancy<'_, B> {
    /// `Unbound` becomes `Bound`.
    pub(crate) fn bind(self, binding: B) {
        *self.0 = State::Bound(binding);
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_state))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn a_life() {
        let mut state = State::Unbound;
        assert!(state.may_open() && state.is_unbound());
        assert!(state.bound().is_err() && state.binding().is_none());
        let vacancy = state.vacancy();
        assert!(vacancy.is_ok());
        let Ok(vacancy) = vacancy else { return };
        vacancy.bind(1);
        assert!(state.vacancy().is_err());
        assert!(state.delete().is_err());
        assert_eq!(state.unbind(), None);
        assert_eq!(state.bound().ok().copied(), Some(1));
        assert!(state.may_open());
        state.run_down();
        assert!(state.is_rundown() && !state.may_open());
        assert!(state.bound().is_err());
        assert_eq!(state.binding(), Some(&1));
        assert!(state.vacancy().is_err() && state.delete().is_err());
        assert_eq!(state.unbind(), Some(1));
        assert!(state.is_unbound());
        assert!(state.delete().is_ok());
        assert!(!state.may_open() && !state.is_unbound());
        assert!(state.vacancy().is_err());
    }

    #[test]
    fn run_down_needs_a_binding() {
        let mut state = State::<u8>::Unbound;
        state.run_down();
        assert!(state.is_unbound());
        assert!(state.delete().is_ok());
        state.run_down();
        assert!(!state.may_open() && state.unbind().is_none());
    }
}
