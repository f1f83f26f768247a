//! What the network has: nodes and topics by name.

use r2r_rcl::{
    rcl_get_node_names, rcl_get_topic_names_and_types, rcl_names_and_types_fini, rcl_names_and_types_t,
    rcutils_get_default_allocator, rcutils_get_zero_initialized_string_array, rcutils_string_array_fini,
    rcutils_string_array_t,
};

use super::context::Node;
use super::handle::{Handle, check, copy_string};
use crate::ros::RosError;

/// How many nodes of the name of `node` there are, itself among them.
pub(super) fn num_namesakes(node: &Node) -> Result<usize, RosError> {
    let (names, namespaces) = (Strings::new(), Strings::new());
    // SAFETY: the node lives, the arrays are zero.
    let listed = unsafe {
        rcl_get_node_names(node.ptr(), rcutils_get_default_allocator(), names.0.ptr(), namespaces.0.ptr())
    };
    check(listed, "listing nodes")?;
    let own = (node.name.name(), node.name.namespace());
    let (names, namespaces) = (names.to_vec(), namespaces.to_vec());
    let both = names.iter().zip(&namespaces);
    Ok(both.filter(|(name, namespace)| (name.as_str(), namespace.as_str()) == own).count())
}

/// The topics whose names start with `prefix`.
pub(super) fn topics_under(node: &Node, prefix: &str) -> Result<Vec<String>, RosError> {
    // SAFETY: all take nothing and return a value.
    let (names, mut allocator) =
        unsafe { (rcutils_get_zero_initialized_string_array(), rcutils_get_default_allocator()) };
    let topics = Topics(Handle::new(rcl_names_and_types_t { names, types: std::ptr::null_mut() }));
    // SAFETY: the node lives, the lists are zero, and the allocator outlives the call.
    let listed =
        unsafe { rcl_get_topic_names_and_types(node.ptr(), &raw mut allocator, false, topics.0.ptr()) };
    check(listed, "listing topics")?;
    // SAFETY: filled by rcl, and nobody writes to it meanwhile.
    let mut names = unsafe { copy_strings(&(*topics.0.ptr()).names) };
    names.retain(|name| name.starts_with(prefix));
    Ok(names)
}

/// Names that rcl fills; freed when dropped.
struct Topics(Handle<rcl_names_and_types_t>);

impl Drop for Topics {
    fn drop(&mut self) {
        // SAFETY: zero or filled by rcl, and not used after.
        unsafe { rcl_names_and_types_fini(self.0.ptr()) };
    }
}

/// A list of strings that rcl fills; freed when dropped.
struct Strings(Handle<rcutils_string_array_t>);

impl Strings {
    fn new() -> Self {
        // SAFETY: takes nothing and returns a value.
        Self(Handle::new(unsafe { rcutils_get_zero_initialized_string_array() }))
    }

    fn to_vec(&self) -> Vec<String> {
        // SAFETY: zero or filled by rcl, and nobody writes to it meanwhile.
        unsafe { copy_strings(&*self.0.ptr()) }
    }
}

impl Drop for Strings {
    fn drop(&mut self) {
        // SAFETY: zero or filled by rcl, and not used after.
        unsafe { rcutils_string_array_fini(self.0.ptr()) };
    }
}

/// # Safety
/// `array` is zero or filled by rcl.
unsafe fn copy_strings(array: &rcutils_string_array_t) -> Vec<String> {
    if array.data.is_null() {
        return Vec::new();
    }
    // SAFETY: rcutils holds `size` strings at `data`.
    unsafe {
        std::slice::from_raw_parts(array.data, array.size).iter().map(|text| copy_string(*text)).collect()
    }
}
