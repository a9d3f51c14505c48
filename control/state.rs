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
//!   Deleting   cannot be opened; final
//! ```

use kernel::prelude::*;

/// The state of a device. `B` is the binding of a bound device.
///
/// Changes only by the transitions below.
pub(crate) enum State<B> {
    /// Without a backing file.
    Unbound,
    /// With a backing file.
    Bound(B),
    /// Being torn down. I/O of openers is still served.
    Rundown(B),
    /// Being removed.
    Deleting,
}

impl<B> State<B> {
    /// Returns proof that the device is `Unbound`; fails with `EBUSY` in any other state.
    pub(crate) fn unbound(&mut self) -> Result<Unbound<'_, B>> {
        if let Self::Unbound = self {
            // INVARIANT: Checked above.
            Ok(Unbound(self))
        } else {
            Err(EBUSY)
        }
    }

    /// Returns the binding of a `Bound` device. Fails with `ENXIO` in any other state.
    pub(crate) fn bound(&self) -> Result<&B> {
        match self {
            Self::Bound(binding) => Ok(binding),
            _ => Err(ENXIO),
        }
    }

    /// Returns the binding of a `Bound` device for a change. Fails with `ENXIO` in any other state.
    pub(crate) fn bound_mut(&mut self) -> Result<&mut B> {
        match self {
            Self::Bound(binding) => Ok(binding),
            _ => Err(ENXIO),
        }
    }

    /// Returns the binding of a `Bound` or `Rundown` device.
    pub(crate) fn binding(&self) -> Option<&B> {
        match self {
            Self::Bound(binding) | Self::Rundown(binding) => Some(binding),
            Self::Unbound | Self::Deleting => None,
        }
    }

    /// Returns the same state with its binding, if any, replaced by `map` of it.
    pub(crate) fn map<C>(&self, map: impl FnOnce(&B) -> C) -> State<C> {
        match self {
            Self::Unbound => State::Unbound,
            Self::Bound(binding) => State::Bound(map(binding)),
            Self::Rundown(binding) => State::Rundown(map(binding)),
            Self::Deleting => State::Deleting,
        }
    }

    /// Turns `Bound` into `Rundown`; other states stay.
    pub(crate) fn run_down(&mut self) {
        *self = match core::mem::replace(self, Self::Unbound) {
            Self::Bound(binding) => Self::Rundown(binding),
            other => other,
        };
    }

    /// Turns `Rundown` into `Unbound`, and returns the binding, which the caller drops outside all
    /// locks; other states stay.
    pub(crate) fn unbind(&mut self) -> Option<B> {
        match core::mem::replace(self, Self::Unbound) {
            Self::Rundown(binding) => Some(binding),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Turns `Unbound` into `Deleting`; fails with `EBUSY` in any other state.
    pub(crate) fn delete(&mut self) -> Result {
        let Self::Unbound = self else {
            return Err(EBUSY);
        };
        *self = Self::Deleting;
        Ok(())
    }

    /// Returns the name of the state for user space.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Unbound | Self::Deleting => "unbound",
            Self::Bound(_) => "bound",
            Self::Rundown(_) => "rundown",
        }
    }

    /// Returns whether the device is `Unbound`.
    pub(crate) fn is_unbound(&self) -> bool {
        matches!(self, Self::Unbound)
    }

    /// Returns whether the device is being torn down.
    pub(crate) fn is_rundown(&self) -> bool {
        matches!(self, Self::Rundown(_))
    }

    /// Returns whether the device may be opened.
    pub(crate) fn may_open(&self) -> bool {
        matches!(self, Self::Unbound | Self::Bound(_))
    }
}

/// Proof that a device is unbound.
///
/// # Invariants
///
/// The state is `Unbound`.
pub(crate) struct Unbound<'a, B>(&'a mut State<B>);

impl<B> Unbound<'_, B> {
    /// Turns `Unbound` into `Bound`.
    pub(crate) fn bind(self, binding: B) {
        *self.0 = State::Bound(binding);
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_state))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn transitions_follow_the_diagram() {
        let mut state = State::Unbound;
        assert!(state.may_open() && state.is_unbound());
        assert!(state.bound().is_err() && state.binding().is_none());
        let unbound = state.unbound();
        assert!(unbound.is_ok());
        let Ok(unbound) = unbound else { return };
        unbound.bind(1);
        assert!(state.unbound().is_err());
        assert!(state.delete().is_err());
        assert_eq!(state.unbind(), None);
        assert_eq!(state.bound().ok().copied(), Some(1));
        assert!(state.may_open());
        state.run_down();
        assert!(state.is_rundown() && !state.may_open());
        assert!(state.bound().is_err());
        assert_eq!(state.binding(), Some(&1));
        assert!(state.unbound().is_err() && state.delete().is_err());
        assert_eq!(state.unbind(), Some(1));
        assert!(state.is_unbound());
        assert!(state.delete().is_ok());
        assert!(!state.may_open() && !state.is_unbound());
        assert!(state.unbound().is_err());
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
