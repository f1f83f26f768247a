//! rcl's list of what a thread waits for.

use r2r_rcl::{
    RCL_RET_TIMEOUT, rcl_client_t, rcl_get_zero_initialized_wait_set, rcl_guard_condition_t, rcl_service_t,
    rcl_subscription_t, rcl_wait, rcl_wait_set_add_client, rcl_wait_set_add_guard_condition,
    rcl_wait_set_add_service, rcl_wait_set_add_subscription, rcl_wait_set_clear, rcl_wait_set_fini,
    rcl_wait_set_init, rcl_wait_set_resize, rcl_wait_set_t, rcutils_get_default_allocator,
};

use super::context::Context;
use super::handle::{Handle, check, is, take_error};
use crate::ros::RosError;

/// Something with messages to take.
#[derive(Clone, Copy)]
pub(super) enum Waitable {
    Subscription(*const rcl_subscription_t),
    Service(*const rcl_service_t),
    Client(*const rcl_client_t),
}

/// How much a wait set holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    num_subscriptions: usize,
    num_services: usize,
    num_clients: usize,
    num_guards: usize,
}

impl Counts {
    pub fn of(waitables: impl Iterator<Item = Waitable>, num_guards: usize) -> Self {
        waitables.fold(Self { num_guards, ..Self::default() }, |mut counts, waitable| {
            match waitable {
                Waitable::Subscription(_) => counts.num_subscriptions += 1,
                Waitable::Service(_) => counts.num_services += 1,
                Waitable::Client(_) => counts.num_clients += 1,
            }
            counts
        })
    }
}

/// The list; freed when dropped.
pub(super) struct WaitSet {
    handle: Handle<rcl_wait_set_t>,
    counts: Counts,
}

impl WaitSet {
    pub fn new(context: &Context) -> Result<Self, RosError> {
        // SAFETY: takes nothing and returns a value.
        let handle = Handle::new(unsafe { rcl_get_zero_initialized_wait_set() });
        // SAFETY: zero, as rcl asks; the context is initialized.
        let made = unsafe {
            let allocator = rcutils_get_default_allocator();
            rcl_wait_set_init(handle.ptr(), 0, 0, 0, 0, 0, 0, context.ptr(), allocator)
        };
        check(made, "making a wait set")?;
        Ok(Self { handle, counts: Counts::default() })
    }

    /// Empties the list, for as much as `counts`.
    pub fn clear(&mut self, counts: Counts) -> Result<(), RosError> {
        // SAFETY: initialized, and this thread's alone: `&mut self`.
        check(unsafe { rcl_wait_set_clear(self.handle.ptr()) }, "clearing a wait set")?;
        if counts == self.counts {
            return Ok(());
        }
        let Counts { num_subscriptions, num_services, num_clients, num_guards } = counts;
        // SAFETY: as above.
        let resized = unsafe {
            rcl_wait_set_resize(
                self.handle.ptr(),
                num_subscriptions,
                num_guards,
                0,
                num_clients,
                num_services,
                0,
            )
        };
        check(resized, "resizing a wait set")?;
        self.counts = counts;
        Ok(())
    }

    /// Adds something to wait for; gives its place.
    ///
    /// # Safety
    /// What it points to is initialized and lives until the list is cleared or dropped.
    pub unsafe fn add(&mut self, waitable: Waitable) -> Result<usize, RosError> {
        let (set, mut index) = (self.handle.ptr(), 0);
        // SAFETY: the list is initialized and this thread's alone; of the rest, the caller's promise.
        let added = unsafe {
            match waitable {
                Waitable::Subscription(it) => rcl_wait_set_add_subscription(set, it, &raw mut index),
                Waitable::Service(it) => rcl_wait_set_add_service(set, it, &raw mut index),
                Waitable::Client(it) => rcl_wait_set_add_client(set, it, &raw mut index),
            }
        };
        check(added, "adding to a wait set").map(|()| index)
    }

    /// Adds a guard condition to wait for; gives its place.
    ///
    /// # Safety
    /// As [`Self::add`].
    pub unsafe fn add_guard(&mut self, guard: *const rcl_guard_condition_t) -> Result<usize, RosError> {
        let mut index = 0;
        // SAFETY: as in `add`.
        let added = unsafe { rcl_wait_set_add_guard_condition(self.handle.ptr(), guard, &raw mut index) };
        check(added, "adding to a wait set").map(|()| index)
    }

    /// Waits until something is ready, `timeout_ns` at most.
    pub fn wait(&mut self, timeout_ns: i64) -> Result<(), RosError> {
        // SAFETY: what was added lives, as was promised.
        let waited = unsafe { rcl_wait(self.handle.ptr(), timeout_ns) };
        if is(waited, RCL_RET_TIMEOUT) {
            take_error();
            return Ok(());
        }
        check(waited, "waiting for messages")
    }

    /// Whether what was added as `waitable` at `index` has messages: rcl leaves only those in its list.
    pub fn is_ready(&self, waitable: Waitable, index: usize) -> bool {
        // SAFETY: rcl's arrays are as long as their sizes say, and nobody writes to them meanwhile.
        unsafe {
            let set = &*self.handle.ptr();
            match waitable {
                Waitable::Subscription(_) => is_left(set.subscriptions, set.size_of_subscriptions, index),
                Waitable::Service(_) => is_left(set.services, set.size_of_services, index),
                Waitable::Client(_) => is_left(set.clients, set.size_of_clients, index),
            }
        }
    }

    /// Whether the guard condition at `index` was triggered.
    pub fn is_triggered(&self, index: usize) -> bool {
        // SAFETY: as in `is_ready`.
        unsafe {
            let set = &*self.handle.ptr();
            is_left(set.guard_conditions, set.size_of_guard_conditions, index)
        }
    }
}

/// Whether `list[index]` is not null.
///
/// # Safety
/// `list` is null or holds `len` pointers.
unsafe fn is_left<T>(list: *mut *const T, len: usize, index: usize) -> bool {
    // SAFETY: within the list, by the caller's promise.
    index < len && !list.is_null() && !unsafe { *list.add(index) }.is_null()
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        // SAFETY: initialized, and not used after.
        unsafe { rcl_wait_set_fini(self.handle.ptr()) };
    }
}
