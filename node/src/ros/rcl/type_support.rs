//! Types by name, from the libraries that every ROS 2 package of interfaces installs: what the middleware needs to know of them, and
//! how to make and free their C structures. Nothing of a package has to be there when the node is built.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use r2r_rcl::{rosidl_message_type_support_t, rosidl_service_type_support_t};

use crate::ros::{RosError, TypeName};

/// A message's type.
#[derive(Clone, Copy)]
pub(super) struct MessageType {
    pub support: *const rosidl_message_type_support_t,
    /// Makes a message of default values; null if there is no memory.
    pub create: unsafe extern "C" fn() -> *mut c_void,
    /// Frees one.
    pub destroy: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: what it points to is never written, and never freed: libraries stay loaded.
unsafe impl Send for MessageType {}
// SAFETY: as above.
unsafe impl Sync for MessageType {}

/// A service's type.
#[derive(Clone, Copy)]
pub(super) struct ServiceType {
    pub support: *const rosidl_service_type_support_t,
    pub request: MessageType,
    pub response: MessageType,
}

// SAFETY: as for `MessageType`.
unsafe impl Send for ServiceType {}
// SAFETY: as for `MessageType`.
unsafe impl Sync for ServiceType {}

type Support<T> = unsafe extern "C" fn() -> *const T;

/// What is known of a message of type `ty`.
///
/// # Errors
/// [`RosError::Transport`] if its package is not there, or is of another version.
pub(super) fn message_support(ty: TypeName) -> Result<*const rosidl_message_type_support_t, RosError> {
    support_of_message(ty, &mangled(ty, ""))
}

/// What is known of the service `ty`.
///
/// # Errors
/// As [`message_support`].
pub(super) fn service(ty: TypeName) -> Result<ServiceType, RosError> {
    let name = format!("rosidl_typesupport_c__get_service_type_support_handle__{}", mangled(ty, ""));
    // SAFETY: rosidl gives functions of this name this type; it returns a constant.
    let support = unsafe { symbol::<Support<rosidl_service_type_support_t>>(ty, TYPE_SUPPORT, &name)?() };
    Ok(ServiceType {
        support: not_null(ty, support)?,
        request: message(ty, "_Request")?,
        response: message(ty, "_Response")?,
    })
}

fn message(ty: TypeName, part: &str) -> Result<MessageType, RosError> {
    let name = mangled(ty, part);
    Ok(MessageType {
        support: support_of_message(ty, &name)?,
        // SAFETY: rosidl gives functions of these names these types, but for the structure, which is opaque here.
        create: unsafe { symbol(ty, STRUCTURES, &format!("{name}__create"))? },
        // SAFETY: as above.
        destroy: unsafe { symbol(ty, STRUCTURES, &format!("{name}__destroy"))? },
    })
}

fn support_of_message(ty: TypeName, name: &str) -> Result<*const rosidl_message_type_support_t, RosError> {
    let getter = format!("rosidl_typesupport_c__get_message_type_support_handle__{name}");
    // SAFETY: rosidl gives functions of this name this type; it returns a constant.
    let support = unsafe { symbol::<Support<rosidl_message_type_support_t>>(ty, TYPE_SUPPORT, &getter)?() };
    not_null(ty, support)
}

/// `takt_msgs__srv__Ask_Request`.
fn mangled(ty: TypeName, part: &str) -> String {
    format!("{}__{}__{}{part}", ty.package, ty.kind.folder(), ty.name)
}

fn not_null<T>(ty: TypeName, support: *const T) -> Result<*const T, RosError> {
    if support.is_null() {
        return Err(missing(ty, "its type support is empty".to_owned()));
    }
    Ok(support)
}

/// Ends of the libraries' names.
const TYPE_SUPPORT: &str = "rosidl_typesupport_c";
const STRUCTURES: &str = "rosidl_generator_c";

/// The function `name` in the library `part` of the package of `ty`.
///
/// # Safety
/// `T` is the function's type.
unsafe fn symbol<T: Copy>(ty: TypeName, part: &str, name: &str) -> Result<T, RosError> {
    let library = library(ty, part)?;
    // SAFETY: the caller's promise; the library stays loaded.
    let symbol =
        unsafe { library.get::<T>(name.as_bytes()) }.map_err(|error| missing(ty, error.to_string()))?;
    Ok(*symbol)
}

/// Loads `lib<package>__<part>.so` from where the sourced environment says libraries are, for good: middlewares keep pointers into it.
fn library(ty: TypeName, part: &str) -> Result<&'static Library, RosError> {
    static LOADED: Mutex<Option<HashMap<String, &'static Library>>> = Mutex::new(None);
    let name = format!("lib{}__{part}.so", ty.package);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(library) = loaded.get(&name) {
        return Ok(library);
    }
    // SAFETY: a library of ROS 2 interfaces runs nothing when it is loaded but the registration of its own constants.
    let library = unsafe { Library::new(&name) }.map_err(|error| missing(ty, error.to_string()))?;
    let library = Box::leak(Box::new(library));
    loaded.insert(name, library);
    Ok(library)
}

fn missing(ty: TypeName, reason: String) -> RosError {
    let what = format!("{ty}: build the package {} and source its workspace", ty.package);
    RosError::Transport { what, reason }
}
