// SPDX-License-Identifier: GPL-2.0

//! Groups of sysfs attributes of a disk.
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use super::disk::{
    DiskOperations,
    GenDisk, //
};
use crate::kern::{
    compat::ENAMETOOLONG,
    ffi,
    file, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    device::Device,
    error::{
        from_result,
        to_result, //
    },
    fmt,
    fs::File,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef, //
};

/// The content of an attribute file.
pub(crate) struct Page<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Page<'_> {
    /// Adds the absolute path of `file` below the root directory of the current task.
    ///
    /// Fails with `ENAMETOOLONG` if there is no room for it.
    pub(crate) fn write_path(&mut self, file: &File) -> Result {
        let free = self.buf.get_mut(self.len..).ok_or(ENAMETOOLONG)?;
        self.len = self.len.saturating_add(file::path(file, free)?);
        Ok(())
    }
}

impl fmt::Write for Page<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len.checked_add(s.len()).ok_or(fmt::Error)?;
        let free = self.buf.get_mut(self.len..end).ok_or(fmt::Error)?;
        free.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// An attribute of the disks of driver `T`.
pub(crate) trait Attribute<T: DiskOperations>: 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes the content of the file to `page`. May sleep.
    ///
    /// Must wait neither for a task that removes the group, because that task waits for this, nor
    /// for requests of the disk, which may be removed meanwhile: deadlock.
    fn show(device: &T, page: &mut Page<'_>) -> Result;
}

/// An attribute that root can change.
pub(crate) trait MutableAttribute<T: DiskOperations>: Attribute<T> {
    /// Stores a value that was written to the file, without a newline at its end. May sleep.
    ///
    /// Must wait neither for a task that removes the group, because that task waits for this, nor
    /// for requests of the disk, which may be removed meanwhile: deadlock.
    fn store(device: &T, value: &[u8]) -> Result;
}

/// A `struct device_attribute`.
#[repr(transparent)]
pub(crate) struct DeviceAttribute<T>(bindings::device_attribute, PhantomData<fn(T)>);

impl<T: DiskOperations> DeviceAttribute<T> {
    /// Makes attribute `A`, readable by all users.
    pub(crate) const fn new<A: Attribute<T>>() -> Self {
        Self(Self::raw::<A>(0o444), PhantomData)
    }

    /// Makes attribute `A`, readable by all users, and writable by its owner, root.
    pub(crate) const fn new_mutable<A: MutableAttribute<T>>() -> Self {
        let mut raw = Self::raw::<A>(0o644);
        raw.__bindgen_anon_2.store = Some(store::<T, A>);
        Self(raw, PhantomData)
    }

    const fn raw<A: Attribute<T>>(mode: bindings::umode_t) -> bindings::device_attribute {
        bindings::device_attribute {
            #[allow(clippy::needless_update, reason = "there are more fields with lockdep")]
            attr: bindings::attribute {
                name: kernel::str::as_char_ptr_in_const_context(A::NAME),
                mode,
                ..pin_init::zeroed()
            },
            __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
                show: Some(show::<T, A>),
            },
            ..pin_init::zeroed()
        }
    }
}

/// Calls [`Attribute::show`]: `->show`.
///
/// # Safety
///
/// Called by sysfs alone, for an attribute of an [`AttributeGroup`] of a disk of `T`; `buf` has
/// room for a page.
unsafe extern "C" fn show<T: DiskOperations, A: Attribute<T>>(
    dev: *mut bindings::device,
    _attr: *mut bindings::device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: By the function's requirements `dev` is the device of a disk.
    let disk = unsafe { ffi::rnull_loop_dev_to_disk(dev) };
    // SAFETY: By the function's requirements it is a disk of `T`. Before it is freed,
    // `del_gendisk()`, or a `device_add_disk()` that fails, removes its attributes, and waits for
    // this call.
    let disk = unsafe { GenDisk::<T>::from_raw(disk) };
    // One byte is left, because sysfs warns of attributes that fill the page.
    // SAFETY: By the function's requirements `buf` has room for a page, which sysfs has zeroed, and
    // which this call alone uses.
    let buf = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE - 1) };
    let mut page = Page { buf, len: 0 };
    from_result(|| {
        A::show(disk.device(), &mut page)?;
        Ok(page.len as isize)
    })
}

/// Calls [`MutableAttribute::store`]: `->store`.
///
/// # Safety
///
/// Called by sysfs alone, for an attribute of an [`AttributeGroup`] of a disk of `T`; `buf` has
/// `count` bytes.
unsafe extern "C" fn store<T: DiskOperations, A: MutableAttribute<T>>(
    dev: *mut bindings::device,
    _attr: *mut bindings::device_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the function's requirements `dev` is the device of a disk.
    let disk = unsafe { ffi::rnull_loop_dev_to_disk(dev) };
    // SAFETY: By the function's requirements it is a disk of `T`. Before it is freed,
    // `del_gendisk()`, or a `device_add_disk()` that fails, removes its attributes, and waits for
    // this call.
    let disk = unsafe { GenDisk::<T>::from_raw(disk) };
    // SAFETY: By the function's requirements `buf` has `count` bytes, which do not change.
    let value = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), count) };
    from_result(|| {
        A::store(disk.device(), value.strip_suffix(b"\n").unwrap_or(value))?;
        Ok(isize::try_from(count)?)
    })
}

/// The `N - 1` attributes of a group, and the null pointer behind them.
pub(crate) struct AttributeList<T, const N: usize>([*mut bindings::attribute; N], PhantomData<T>);

impl<T: DiskOperations, const N: usize> AttributeList<T, N> {
    /// Makes the list of `attributes`, which must be `N - 1`. Only for constants, where a panic is
    /// an error of the compiler.
    pub(crate) const fn new(attributes: &'static [DeviceAttribute<T>]) -> Self {
        assert!(attributes.len() + 1 == N);
        let mut list = [core::ptr::null_mut(); N];
        let mut number = 0;
        while number < attributes.len() {
            // CAST: sysfs takes a mutable pointer, but does not change the attribute.
            list[number] = (&raw const attributes[number].0.attr).cast_mut();
            number += 1;
        }
        Self(list, PhantomData)
    }
}

/// A directory of attributes of the disks of driver `T`: `struct attribute_group`.
///
/// # Invariants
///
/// The name and the list of attributes are static. The list ends with null, and its attributes are
/// each a [`DeviceAttribute`] of `T`.
#[repr(transparent)]
pub(crate) struct AttributeGroup<T>(bindings::attribute_group, PhantomData<T>);

impl<T: DiskOperations> AttributeGroup<T> {
    /// Makes the directory `name` with the attributes of `list`.
    pub(crate) const fn new<const N: usize>(
        name: &'static CStr,
        list: &'static AttributeList<T, N>,
    ) -> Self {
        // INVARIANT: By its constructor the list has attributes of `T`, and ends with null.
        Self(
            bindings::attribute_group {
                name: kernel::str::as_char_ptr_in_const_context(name),
                __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
                    // CAST: sysfs takes a mutable pointer, but does not change the list.
                    attrs: list.0.as_ptr().cast_mut(),
                },
                ..pin_init::zeroed()
            },
            PhantomData,
        )
    }
}

/// A directory of attributes that was added to a disk. Dropping it removes the directory, and waits
/// for calls of [`Attribute::show`] and [`MutableAttribute::store`].
///
/// # Invariants
///
/// `sysfs_create_group()` has added an [`AttributeGroup`] to `dev`, and it is not removed yet. Its
/// static name is `name`.
pub(crate) struct Group {
    dev: ARef<Device>,
    name: *const c_char,
}

// SAFETY: Any thread may remove the group, whose name is static, and does not change.
unsafe impl Send for Group {}

impl Group {
    /// Adds the directory `group` to `disk`, which must be registered.
    ///
    /// May sleep. Fails with `EEXIST` if the directory exists, and with `ENOMEM`.
    pub(crate) fn create<T: DiskOperations>(
        disk: &GenDisk<T>,
        group: &'static AttributeGroup<T>,
    ) -> Result<Self> {
        let dev = disk.dev();
        // SAFETY: `dev` keeps the device and its kobject. By the type invariant the group is valid,
        // and its attributes call `show::<T, _>` and `store::<T, _>` on a disk of `T`.
        to_result(unsafe { bindings::sysfs_create_group(kobj(&dev), &group.0) })?;
        // INVARIANT: The call above has added it.
        Ok(Self {
            dev,
            name: group.0.name,
        })
    }
}

/// Wakes tasks that poll the attribute `name` of the directory `group` of a disk: `sysfs_notify()`.
/// May sleep.
pub(crate) fn notify<T: DiskOperations>(
    disk: &GenDisk<T>,
    group: &'static CStr,
    name: &'static CStr,
) {
    let dev = disk.dev();
    // SAFETY: `dev` keeps the device and its kobject; the names are NUL-terminated.
    unsafe { bindings::sysfs_notify(kobj(&dev), group.as_char_ptr(), name.as_char_ptr()) };
}

/// Returns the kobject of a device.
fn kobj(dev: &Device) -> *mut bindings::kobject {
    // CAST: `Device` is a transparent `Opaque<bindings::device>`.
    let raw = core::ptr::from_ref(dev)
        .cast_mut()
        .cast::<bindings::device>();
    // SAFETY: A `Device` is valid; this only computes an address inside it.
    unsafe { &raw mut (*raw).kobj }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The removal of the directory removes all that is in it. That is faster than to remove
        // each attribute before, so the group is given without them.
        let group = bindings::attribute_group {
            name: self.name,
            ..pin_init::zeroed()
        };
        // SAFETY: By the type invariant a group of that name was added to `dev`, and is not removed
        // yet.
        unsafe { bindings::sysfs_remove_group(kobj(&self.dev), &group) };
    }
}
