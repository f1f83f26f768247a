//! Weights that a plan is given: those it was built without, or others.
#![expect(unsafe_code, reason = "TensorRT is called through the shim")]

use std::ffi::{CStr, CString, c_char};

use super::plan::{Inner, Plan};
use crate::{
    Result, TensorRtError,
    api::RefitterObject,
    build::PlanBytes,
    object::Owned,
    tensor::{DataType, to_name},
};

/// Names that an error tells.
const MAX_TOLD: usize = 8;

/// What a plan takes under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// Of the ONNX model's constant.
    pub name: String,
    /// Its elements.
    pub data_type: DataType,
    /// How many.
    pub num_elements: usize,
}

type Refitter = Owned<RefitterObject>;
/// `refitter_all` and `refitter_missing`.
type Names = unsafe extern "C" fn(*mut RefitterObject, *mut *const c_char, i32) -> i32;

impl Plan {
    /// All weights that a refittable plan can be given. A builder may have folded some of the model's away: those are not among them.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a plan that was not built for it, [`TensorRtError::Failed`].
    pub fn refittable_weights(&self) -> Result<Vec<Weights>> {
        let inner = &self.inner;
        let engine = inner.engine();
        let refitter = refitter(inner, engine.get())?;
        let names = names(&refitter, inner.api.refitter_all);
        let found = names.into_iter().flatten().map(|name| {
            let prototype = prototype(inner, &refitter, &name);
            let name = name.to_string_lossy().into_owned();
            prototype.map(|(data_type, num_elements)| Weights { name, data_type, num_elements })
        });
        Ok(found.flatten().collect())
    }

    /// Gives a refittable plan its weights, by the names of the ONNX model's constants. Before the first execution; all that are missing at once.
    /// The bytes are copied.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a plan that was not built for it or has executions, for weights of another type or size, and with the names
    /// of those that are missing; [`TensorRtError::Failed`], [`TensorRtError::OutOfMemory`]. After an error from TensorRT itself some of the
    /// weights may be new: load the plan anew.
    pub fn refit(&mut self, weights: &[(&str, DataType, &[u8])]) -> Result<()> {
        let inner = &self.inner;
        let engine = inner.without_executions("weights")?;
        let refitter = refitter(inner, engine.get())?;
        let named: Vec<CString> = weights.iter().map(|(name, ..)| to_name(name)).collect::<Result<_>>()?;
        let mut refused = Vec::new();
        for (name, &(text, data_type, bytes)) in named.iter().zip(weights) {
            match prototype(inner, &refitter, name) {
                None => refused.push(format!("{text:?} is not among its weights")),
                Some((expected, num_elements)) => {
                    let num_bytes = expected.num_bytes(num_elements);
                    if expected != data_type || num_bytes != Some(bytes.len()) {
                        refused.push(format!(
                            "{text:?} is {} bytes of {data_type:?}, expected {num_elements} elements of {expected:?}",
                            bytes.len()
                        ));
                    }
                }
            }
        }
        if !refused.is_empty() {
            return Err(TensorRtError::Refused(format!(
                "weights do not fit the plan: {}",
                listed(refused, "; ")
            )));
        }
        for (name, &(text, data_type, bytes)) in named.iter().zip(weights) {
            let num_elements = bytes.len() * 8 / data_type.num_bits();
            // An odd number of 4-bit elements leaves half a byte.
            let num_elements = prototype(inner, &refitter, name).map_or(num_elements, |(_, num)| num);
            let watch = inner.recorder.watch();
            // SAFETY: alive; a name that ends with 0; the values live until the refitter is gone, at the end of this function.
            let is_taken = unsafe {
                let (values, count) = (bytes.as_ptr().cast(), num_elements as i64);
                (inner.api.refitter_set)(refitter.get(), name.as_ptr(), data_type as i32, values, count)
            };
            if is_taken == 0 {
                return Err(watch.error("giving the plan weights", &format!("{text:?} was not taken")));
            }
        }
        let missing = names(&refitter, inner.api.refitter_missing);
        if !missing.is_empty() {
            let name =
                |name: Option<CString>| name.map_or("one without a name".into(), |name| format!("{name:?}"));
            let missing: Vec<_> = missing.into_iter().map(name).collect();
            return Err(TensorRtError::Refused(format!("weights are missing: {}", listed(missing, ", "))));
        }
        let watch = inner.recorder.watch();
        // SAFETY: alive; nothing of the plan runs, as it has no executions.
        if unsafe { (inner.api.refitter_refit)(refitter.get()) } == 0 {
            return Err(watch.error("giving the plan weights", ""));
        }
        Ok(())
    }

    /// The plan as it is now, with the weights it was given, for [`load`](Self::load). As large as the plan was.
    ///
    /// # Errors
    /// [`TensorRtError::Failed`], [`TensorRtError::OutOfMemory`].
    pub fn serialize(&self) -> Result<PlanBytes> {
        let inner = &self.inner;
        inner.context.make_current()?;
        let watch = inner.recorder.watch();
        let engine = inner.engine();
        // SAFETY: alive, and locked; the memory is the caller's and no part of the engine.
        let memory =
            unsafe { Owned::new((inner.api.engine_serialize)(engine.get()), inner.api.memory_destroy) };
        let bytes = memory.and_then(|memory| PlanBytes::new(&inner.trt, memory));
        bytes.ok_or_else(|| watch.error("writing the plan", ""))
    }
}

/// A refitter of the engine, which is locked meanwhile; the context is current.
fn refitter(inner: &Inner, engine: *mut crate::api::EngineObject) -> Result<Refitter> {
    if !inner.is_refittable() {
        let reason = "the plan's weights cannot be given anew: build it refittable";
        return Err(TensorRtError::Refused(reason.into()));
    }
    inner.context.make_current()?;
    let watch = inner.recorder.watch();
    // SAFETY: the factory is the library's; engine, logger and recorder outlive the refitter.
    unsafe {
        let refitter = (inner.api.refitter_create)(inner.trt.create_refitter(), engine, inner.trt.logger()?);
        let refitter = Owned::new(refitter, inner.api.refitter_destroy);
        let refitter = refitter.ok_or_else(|| watch.error("beginning to refit", ""))?;
        (inner.api.refitter_set_recorder)(refitter.get(), inner.recorder.get());
        Ok(refitter)
    }
}

/// Type and number of elements of the weights `name`; `None` for a name that the plan has none of.
fn prototype(inner: &Inner, refitter: &Refitter, name: &CStr) -> Option<(DataType, usize)> {
    let (mut data_type, mut num_elements) = (0, 0);
    // SAFETY: alive; a name that ends with 0; writes two numbers.
    let is_known = unsafe {
        (inner.api.refitter_prototype)(
            refitter.get(),
            name.as_ptr(),
            &raw mut data_type,
            &raw mut num_elements,
        )
    };
    if is_known == 0 {
        return None;
    }
    Some((DataType::from_number(data_type)?, usize::try_from(num_elements).ok()?))
}

/// Names that `ask` gives; `None` for weights without one.
fn names(refitter: &Refitter, ask: Names) -> Vec<Option<CString>> {
    // SAFETY: alive; no room, so that nothing is written.
    let num = unsafe { ask(refitter.get(), std::ptr::null_mut(), 0) };
    let mut names = vec![std::ptr::null(); usize::try_from(num).unwrap_or_default()];
    if names.is_empty() {
        return Vec::new();
    }
    // SAFETY: alive; room for so many names, which are the engine's.
    let found = unsafe { ask(refitter.get(), names.as_mut_ptr(), num) };
    names.truncate(usize::try_from(found).unwrap_or_default());
    // SAFETY: null, or a string of the engine's, which is locked.
    names
        .into_iter()
        .map(|name| (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_owned()))
        .collect()
}

/// The first few.
fn listed(mut items: Vec<String>, separator: &str) -> String {
    let num_more = items.len().saturating_sub(MAX_TOLD);
    items.truncate(MAX_TOLD);
    if num_more > 0 {
        items.push(format!("and {num_more} more"));
    }
    items.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_told_in_part() {
        let items: Vec<_> = (0..10).map(|idx| idx.to_string()).collect();
        assert_eq!(listed(items.clone(), ", "), "0, 1, 2, 3, 4, 5, 6, 7, and 2 more");
        assert_eq!(listed(items[..8].to_vec(), ", "), "0, 1, 2, 3, 4, 5, 6, 7");
    }
}
