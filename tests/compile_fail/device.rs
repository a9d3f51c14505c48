// SPDX-License-Identifier: GPL-2.0

//! Misuse of devices that their types reject: states, frozen queues, limits. See `run` for the
//! marks.

use crate::{
    blk_mq::{
        Disk,
        GenDisk, //
    },
    control::{
        device::LoopDevice,
        state::State, //
    },
    datapath::target::Target,
};
use kernel::prelude::*;

fn send<T: Send>(_: T) {}

// A device is bound without a check whether it is bound.
fn bind_blindly(state: &mut State<u8>) -> Result {
    #[cfg(misuse)]
    state.bind(1); //~ E0599
    #[cfg(not(misuse))]
    state.unbound()?.bind(1);
    Ok(())
}

// A device is bound twice.
fn bind_twice(state: &mut State<u8>) -> Result {
    let unbound = state.unbound()?;
    unbound.bind(1);
    #[cfg(misuse)]
    unbound.bind(2); //~ E0382
    Ok(())
}

// A device changes its state between the check and the binding.
fn delete_before_binding(state: &mut State<u8>) -> Result {
    let unbound = state.unbound()?;
    #[cfg(misuse)]
    state.delete()?; //~ E0499
    unbound.bind(1);
    Ok(())
}

// The binding of a device is used although the device may be unbound.
fn use_unbound(state: &State<u8>) -> Option<&u8> {
    let binding = state.binding();
    #[cfg(misuse)]
    let binding: &u8 = binding; //~ E0308
    #[cfg(misuse)]
    return Some(binding);
    #[cfg(not(misuse))]
    binding
}

// The binding of a device is used after it was dropped: bug class 4.
fn use_after_unbinding(state: &mut State<u8>) -> Result {
    let binding = state.bound_mut()?;
    *binding = 1;
    #[cfg(misuse)]
    state.run_down(); //~ E0499
    #[cfg(misuse)]
    let _ = *binding;
    Ok(())
}

// The target of requests changes while requests may be in flight.
fn change_target_unfrozen(disk: &GenDisk<LoopDevice>, target: Target) {
    #[cfg(misuse)]
    disk.replace(target); //~ E0599
    #[cfg(not(misuse))]
    drop(disk.freeze().replace(target));
}

// The target of requests is used after the queue was thawed: bug class 15.
fn change_target_thawed(disk: &GenDisk<LoopDevice>) {
    let mut frozen = disk.freeze();
    let target = frozen.backend();
    let _ = target.is_some();
    #[cfg(misuse)]
    drop(frozen); //~ E0505
    #[cfg(misuse)]
    let _ = target.is_some();
}

// A queue is frozen by one task and thawed by another, without the saved context of the first.
fn send_frozen(disk: &GenDisk<LoopDevice>) {
    let frozen = disk.freeze();
    #[cfg(misuse)]
    send(frozen); //~ E0277
    #[cfg(not(misuse))]
    drop(frozen);
}

// A change of limits is committed twice, and its lock released twice: bug class 20.
fn commit_twice(disk: &GenDisk<LoopDevice>) -> Result {
    let limits = disk.update_limits();
    limits.commit()?;
    #[cfg(misuse)]
    limits.commit()?; //~ E0382
    Ok(())
}

// Limits change after they were committed.
fn change_committed(disk: &GenDisk<LoopDevice>) -> Result {
    let mut limits = disk.update_limits();
    limits.set_fua(true);
    limits.commit()?;
    #[cfg(misuse)]
    limits.set_fua(false); //~ E0382
    Ok(())
}

// The lock of the limits is released by another task: bug class 20.
fn send_limits(disk: &GenDisk<LoopDevice>) {
    let limits = disk.update_limits();
    #[cfg(misuse)]
    send(limits); //~ E0277
    #[cfg(not(misuse))]
    drop(limits);
}

// Partitions are scanned without the lock of opens: bug class 31.
fn scan_unlocked(disk: &GenDisk<LoopDevice>) -> Result {
    #[cfg(misuse)]
    disk.reread_partitions()?; //~ E0599
    #[cfg(not(misuse))]
    disk.lock_open().reread_partitions()?;
    Ok(())
}

// A disk is deleted twice.
fn delete_twice(disk: Disk<LoopDevice>) {
    let _deleted = disk.delete();
    #[cfg(misuse)]
    disk.delete(); //~ E0382
}
