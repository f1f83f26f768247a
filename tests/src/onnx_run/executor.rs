//! What the stand-in of `libnvinfer` calls to have a plan computed: `standin_execute` of its `executor.h`.

#![expect(unsafe_code, reason = "called from C with raw memory")]

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Binding, Element, Model, Result, RunError, tensor::num_elements};

/// An input or output: `struct standin_tensor`.
#[repr(C)]
#[derive(Debug)]
pub struct StandinTensor {
    /// Its name, ended by a zero.
    pub name: *const c_char,
    /// TensorRT's number of its type.
    pub dtype: i32,
    /// Not 0 for an input.
    pub is_input: i32,
    /// How many of `dims` count.
    pub num_dims: i32,
    /// Outermost first.
    pub dims: [i64; 8],
    /// Where it lies.
    pub data: *mut c_void,
}

/// A file of a model: `struct standin_file`.
#[repr(C)]
#[derive(Debug)]
pub struct StandinFile {
    /// Its name, ended by a zero.
    pub name: *const c_char,
    /// Its content.
    pub bytes: *const u8,
    /// Length of that.
    pub num_bytes: u64,
}

/// What a plan was built from: `struct standin_model`.
#[repr(C)]
#[derive(Debug)]
pub struct StandinModel {
    /// The same for the same files.
    pub id: u64,
    /// The model, then its data.
    pub files: *const StandinFile,
    /// How many.
    pub num_files: i32,
}

/// One run: of which model, and the shape of each input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// The model's id.
    pub model: u64,
    /// Names and shapes of the inputs, as they were bound.
    pub inputs: Vec<(String, Vec<usize>)>,
}

/// Models by id, each read when it is first run, and what was run.
#[derive(Debug, Default)]
pub struct Executor {
    models: Mutex<HashMap<u64, Arc<Model>>>,
    executions: Mutex<Vec<Execution>>,
}

impl Executor {
    /// The function that the stand-in is given, with the executor's address as `user`.
    pub const FUNCTION: unsafe extern "C" fn(
        *mut c_void,
        *const StandinModel,
        *const StandinTensor,
        i32,
        *mut c_char,
        i32,
    ) -> i32 = execute;

    /// Runs the model `id`, which `files` are where it is not known yet.
    ///
    /// # Errors
    /// As [`Model::read`] and [`Model::run`].
    pub fn run(
        &self,
        id: u64,
        files: &[(&str, &[u8])],
        bindings: &[Binding<'_>],
        is_input: &[bool],
    ) -> Result<()> {
        let model = self.model(id, files)?;
        let given = bindings.iter().zip(is_input).filter(|(_, is_input)| **is_input);
        let inputs = given.map(|(binding, _)| (binding.name.to_owned(), binding.dims.clone())).collect();
        model.run(bindings)?;
        self.executions.lock().unwrap_or_else(PoisonError::into_inner).push(Execution { model: id, inputs });
        Ok(())
    }

    /// All runs that were done since the last call.
    pub fn take_executions(&self) -> Vec<Execution> {
        std::mem::take(&mut *self.executions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn model(&self, id: u64, files: &[(&str, &[u8])]) -> Result<Arc<Model>> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.get(&id) {
            return Ok(Arc::clone(model));
        }
        let ((_, onnx), data) =
            files.split_first().ok_or_else(|| RunError(format!("model {id} without a file")))?;
        let model = Arc::new(Model::read(onnx, data)?);
        models.insert(id, Arc::clone(&model));
        Ok(model)
    }
}

/// `standin_execute`; `user` is an [`Executor`] that outlives every call.
///
/// # Safety
/// As `executor.h` says: all pointers are what they are called, names end with a zero, and memory of tensors is used by nobody else until it returns.
unsafe extern "C" fn execute(
    user: *mut c_void,
    model: *const StandinModel,
    tensors: *const StandinTensor,
    num_tensors: i32,
    error: *mut c_char,
    error_len: i32,
) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller's promise.
        let (executor, model) = unsafe { (user.cast::<Executor>().as_ref(), model.as_ref()) };
        let (Some(executor), Some(model)) = (executor, model) else {
            return Err(RunError("called without an executor or a model".into()));
        };
        // SAFETY: the caller's promise.
        let (files, tensors) = unsafe { (files_of(model)?, list(tensors, num_tensors)) };
        // SAFETY: the caller's promise.
        let bindings = tensors.iter().map(|tensor| unsafe { binding(tensor) }).collect::<Result<Vec<_>>>()?;
        let is_input: Vec<bool> = tensors.iter().map(|tensor| tensor.is_input != 0).collect();
        executor.run(model.id, &files, &bindings, &is_input)
    }));
    let said = match outcome {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
            format!("the interpreter panicked: {text}")
        }
    };
    // SAFETY: the caller's promise.
    unsafe { tell(&said, error, error_len) };
    1
}

/// `count` values from `first` on.
///
/// # Safety
/// They are there for as long as the result is used, or there are none.
unsafe fn list<'a, T>(first: *const T, count: i32) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: the caller's promise.
        Ok(count) if count > 0 && !first.is_null() => unsafe { slice::from_raw_parts(first, count) },
        _ => &[],
    }
}

/// A text that ends with a zero.
///
/// # Safety
/// It does, and is there for as long as the result is used.
unsafe fn text<'a>(text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(RunError("a name is missing".into()));
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| RunError(format!("a name that is no UTF-8: {text:?}")))
}

/// Names and contents.
///
/// # Safety
/// As [`execute`].
unsafe fn files_of(model: &StandinModel) -> Result<Vec<(&str, &[u8])>> {
    // SAFETY: the caller's promise.
    let files = unsafe { list(model.files, model.num_files) };
    let read = |file: &StandinFile| {
        let len = usize::try_from(file.num_bytes).map_err(|_| RunError("a file too large".into()))?;
        let bytes: &[u8] = match file.bytes.is_null() || len == 0 {
            true => &[],
            // SAFETY: the caller's promise.
            false => unsafe { slice::from_raw_parts(file.bytes, len) },
        };
        // SAFETY: the caller's promise.
        Ok((unsafe { text(file.name) }?, bytes))
    };
    files.iter().map(read).collect()
}

/// A tensor as the interpreter sees it.
///
/// # Safety
/// As [`execute`].
unsafe fn binding(tensor: &StandinTensor) -> Result<Binding<'_>> {
    // SAFETY: the caller's promise.
    let name = unsafe { text(tensor.name) }?;
    let element = Element::of_tensorrt(tensor.dtype).map_err(|e| e.at("port", name))?;
    let dims = usize::try_from(tensor.num_dims).ok().and_then(|count| tensor.dims.get(..count));
    let dims: Option<Vec<usize>> =
        dims.and_then(|dims| dims.iter().map(|&dim| usize::try_from(dim).ok()).collect());
    let misfit = || RunError(format!("{} dimensions {:?}", tensor.num_dims, tensor.dims)).at("port", name);
    let dims = dims.ok_or_else(misfit)?;
    let len = element.num_bytes(num_elements(&dims)?).ok_or_else(misfit)?;
    if tensor.data.is_null() && len > 0 {
        return Err(RunError("has no memory".into()).at("port", name));
    }
    let cells: &[Cell<u8>] = match len {
        0 => &[],
        // SAFETY: the caller's promise; a cell is a byte that may be written through every reference.
        _ => unsafe { slice::from_raw_parts(tensor.data.cast::<Cell<u8>>(), len) },
    };
    Binding::new(name, element, &dims, cells)
}

/// Writes as much of `said` as there is room for, and a zero.
///
/// # Safety
/// `error` has room for `error_len` characters, or is null.
unsafe fn tell(said: &str, error: *mut c_char, error_len: i32) {
    let Some(room) = usize::try_from(error_len).ok().and_then(|len| len.checked_sub(1)) else { return };
    if error.is_null() {
        return;
    }
    let len = (0..=room.min(said.len())).rev().find(|&len| said.is_char_boundary(len)).unwrap_or(0);
    // SAFETY: `len` characters and the zero are at most `error_len`.
    unsafe {
        error.cast::<u8>().copy_from_nonoverlapping(said.as_ptr(), len);
        error.add(len).write(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CString, ptr};

    use super::{super::tests::cache_model, *};

    struct Call {
        executor: Executor,
        onnx: Vec<u8>,
        past: Vec<f32>,
        at: i64,
    }

    impl Call {
        /// Calls as the stand-in does: past and present are the same memory.
        fn run(&mut self) -> (i32, String) {
            let names =
                ["model.onnx", "past", "new", "at", "present"].map(|name| CString::new(name).unwrap());
            let file = StandinFile {
                name: names[0].as_ptr(),
                bytes: self.onnx.as_ptr(),
                num_bytes: self.onnx.len() as u64,
            };
            let model = StandinModel { id: 7, files: &raw const file, num_files: 1 };
            let (past, mut new) = (self.past.as_mut_ptr().cast::<c_void>(), [8.0_f32, 9.0]);
            let tensor = |name: usize, dtype, is_input, dims: &[i64], data| {
                let mut all = [0; 8];
                all[..dims.len()].copy_from_slice(dims);
                let num_dims = dims.len() as i32;
                StandinTensor { name: names[name].as_ptr(), dtype, is_input, num_dims, dims: all, data }
            };
            let tensors = [
                tensor(1, 0, 1, &[1, 1, 2, 2], past),
                tensor(2, 0, 1, &[1, 1, 1, 2], new.as_mut_ptr().cast()),
                tensor(3, 8, 1, &[1], (&raw mut self.at).cast()),
                tensor(4, 0, 0, &[1, 1, 2, 2], past),
            ];
            let (mut error, user) = ([1_u8; 40], ptr::from_mut(&mut self.executor).cast());
            let count = tensors.len() as i32;
            // SAFETY: all of it lives until the call returns, and says what it is.
            let status = unsafe {
                execute(user, &raw const model, tensors.as_ptr(), count, error.as_mut_ptr().cast(), 40)
            };
            let said = CStr::from_bytes_until_nul(&error)
                .map_or(String::new(), |text| text.to_str().unwrap().into());
            (status, said)
        }
    }

    #[test]
    fn a_plan_is_computed_in_the_memory_that_the_stand_in_names_and_a_failure_is_told() {
        let mut call = Call { executor: Executor::default(), onnx: cache_model(), past: vec![0.0; 4], at: 1 };
        assert_eq!(call.run().0, 0);
        assert_eq!(call.past, [0.0, 0.0, 8.0, 9.0]);
        let executions = call.executor.take_executions();
        assert_eq!(executions[0].inputs[1], ("new".to_owned(), vec![1, 1, 1, 2]));
        call.at = 2;
        let (status, said) = call.run();
        assert_eq!((status, said.len()), (1, 39), "{said}");
        assert!(said.starts_with("TensorScatter"), "{said}");
        assert!(call.executor.take_executions().is_empty());
        let mut other = Call { executor: Executor::default(), onnx: b"no model".into(), past: vec![], at: 0 };
        let (status, said) = other.run();
        assert!(status == 1 && said.contains("no ONNX model"), "{said}");
    }
}
