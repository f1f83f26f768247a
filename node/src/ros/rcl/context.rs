//! The connection to the middleware, and the node on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use r2r_rcl::{
    rcl_context_fini, rcl_context_t, rcl_get_zero_initialized_context, rcl_get_zero_initialized_init_options,
    rcl_get_zero_initialized_node, rcl_init, rcl_init_options_fini, rcl_init_options_get_rmw_init_options,
    rcl_init_options_init, rcl_init_options_set_domain_id, rcl_init_options_t, rcl_node_fini,
    rcl_node_get_default_options, rcl_node_init, rcl_node_t, rcl_shutdown, rcutils_get_default_allocator,
    rmw_get_implementation_identifier, rmw_localhost_only_e,
};

use super::handle::{Handle, c_name, check, copy_string};
use crate::ros::options::EnvironmentRange;
use crate::ros::{NodeName, RosError, RosOptions};

/// rcl and its middlewares share global state while one is opened or closed.
static OPENING: Mutex<()> = Mutex::new(());

fn opening() -> MutexGuard<'static, ()> {
    OPENING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An initialized rcl.
pub(super) struct Context(Handle<rcl_context_t>);

impl Context {
    /// Joins the domain of `options`.
    pub fn join(options: &RosOptions) -> Result<Self, RosError> {
        let what = format!("joining domain {}", options.domain_id);
        let _opening = opening();
        let init = InitOptions::new(options, &what)?;
        // SAFETY: takes nothing and returns a value.
        let context = Handle::new(unsafe { rcl_get_zero_initialized_context() });
        // SAFETY: no arguments are given, so their list may be null; the options are initialized; the context is zero.
        check(unsafe { rcl_init(0, std::ptr::null(), init.0.ptr(), context.ptr()) }, &what)?;
        Ok(Self(context))
    }

    /// For rcl's calls; valid as long as `self`.
    pub fn ptr(&self) -> *mut rcl_context_t {
        self.0.ptr()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _opening = opening();
        // SAFETY: initialized; everything made from it keeps it alive and is gone.
        unsafe {
            rcl_shutdown(self.0.ptr());
            rcl_context_fini(self.0.ptr());
        }
    }
}

/// What `rcl_init` is to do; freed when dropped.
struct InitOptions(Handle<rcl_init_options_t>);

impl InitOptions {
    fn new(options: &RosOptions, what: &str) -> Result<Self, RosError> {
        // SAFETY: both take nothing and return a value.
        let (zero, allocator) =
            unsafe { (rcl_get_zero_initialized_init_options(), rcutils_get_default_allocator()) };
        let init = Handle::new(zero);
        // SAFETY: zero, as rcl asks.
        check(unsafe { rcl_init_options_init(init.ptr(), allocator) }, what)?;
        let init = Self(init);
        // SAFETY: initialized above.
        check(unsafe { rcl_init_options_set_domain_id(init.0.ptr(), options.domain_id.into()) }, what)?;
        // What the environment says of discovery, rcl reads itself, with the peers and the range OFF that come with it.
        if options.localhost_only && options.environment_range == EnvironmentRange::Unset {
            // SAFETY: initialized above; the pointer is into the options, which nobody else sees.
            if let Some(rmw) = unsafe { rcl_init_options_get_rmw_init_options(init.0.ptr()).as_mut() } {
                rmw.localhost_only = rmw_localhost_only_e::RMW_LOCALHOST_ONLY_ENABLED;
            }
        }
        Ok(init)
    }
}

impl Drop for InitOptions {
    fn drop(&mut self) {
        // SAFETY: initialized, and not used after.
        unsafe { rcl_init_options_fini(self.0.ptr()) };
    }
}

/// The node on the network; gone when dropped.
pub(super) struct Node {
    handle: Handle<rcl_node_t>,
    pub name: NodeName,
    /// Held while an entity is made or freed: rcl's node takes one at a time.
    making: Mutex<()>,
    // Freed after the node.
    pub context: Context,
}

impl Node {
    /// Joins the domain of `options` as its node. Names come resolved and `/rosout` is the node's own business, so that rcl
    /// neither renames nor logs.
    pub fn join(options: &RosOptions) -> Result<Arc<Self>, RosError> {
        let name = options.node()?;
        let context = Context::join(options)?;
        let (c_node, c_namespace) =
            (c_name("node name", name.name())?, c_name("namespace", name.namespace())?);
        // SAFETY: both take nothing and return a value.
        let (zero, mut node_options) =
            unsafe { (rcl_get_zero_initialized_node(), rcl_node_get_default_options()) };
        node_options.enable_rosout = false;
        let handle = Handle::new(zero);
        let _opening = opening();
        // SAFETY: the node is zero, the names are strings, the context is initialized; rcl copies the options, which own nothing.
        let made = unsafe {
            rcl_node_init(
                handle.ptr(),
                c_node.as_ptr(),
                c_namespace.as_ptr(),
                context.ptr(),
                &raw const node_options,
            )
        };
        check(made, &format!("making node {name}"))?;
        Ok(Arc::new(Self { handle, name, making: Mutex::default(), context }))
    }

    /// For rcl's calls that change nothing; valid as long as `self`.
    pub fn ptr(&self) -> *const rcl_node_t {
        self.handle.ptr()
    }

    /// Runs `change`, which makes or frees an entity of the node.
    pub fn change<R>(&self, change: impl FnOnce(*mut rcl_node_t) -> R) -> R {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        change(self.handle.ptr())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _opening = opening();
        // SAFETY: every entity of the node keeps it alive, so none is left.
        unsafe { rcl_node_fini(self.handle.ptr()) };
    }
}

/// The middleware that rcl was started with, as `rmw_cyclonedds_cpp`.
pub(super) fn middleware() -> String {
    // SAFETY: a string that lives as long as the process, or null.
    unsafe { copy_string(rmw_get_implementation_identifier()) }
}
