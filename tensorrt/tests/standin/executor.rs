//! `executor.h`: what computes the models that the stand-in runs.

use std::{
    ffi::{CStr, c_char, c_void},
    slice,
};

/// `standin_tensor`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawTensor {
    pub name: *const c_char,
    pub dtype: i32,
    pub is_input: i32,
    pub num_dims: i32,
    pub dims: [i64; 8],
    pub data: *mut c_void,
}

/// `standin_file`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawFile {
    pub name: *const c_char,
    pub bytes: *const u8,
    pub num_bytes: u64,
}

/// `standin_model`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawModel {
    pub id: u64,
    pub files: *const RawFile,
    pub num_files: i32,
}

/// `standin_execute`.
pub type Execute = unsafe extern "C" fn(
    user: *mut c_void,
    model: *const RawModel,
    tensors: *const RawTensor,
    num_tensors: i32,
    error: *mut c_char,
    error_len: i32,
) -> i32;

/// What a plan was built from.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// Another one for each engine.
    pub id: u64,
    /// Names and bytes: the model, then its data.
    pub files: Vec<(&'a str, &'a [u8])>,
}

/// An input or output.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    pub name: &'a str,
    /// `nvinfer1::DataType`.
    pub dtype: i32,
    pub is_input: bool,
    pub dims: &'a [i64],
    /// Where it is.
    pub data: *mut c_void,
}

/// A function of Rust's.
pub type Boxed = Box<dyn Fn(&Model<'_>, &[Tensor<'_>]) -> Result<(), String> + Send + Sync>;

/// Calls the [`Boxed`] that `user` points to.
///
/// # Safety
/// As `executor.h` says; `user` points to a [`Boxed`].
pub unsafe extern "C" fn call_boxed(
    user: *mut c_void,
    model: *const RawModel,
    tensors: *const RawTensor,
    num_tensors: i32,
    error: *mut c_char,
    error_len: i32,
) -> i32 {
    // SAFETY: as `executor.h` says, all of it lives until the call returns.
    let (execute, model, tensors) = unsafe {
        let raw = &*model;
        let files = slice::from_raw_parts(raw.files, usize::try_from(raw.num_files).unwrap());
        let files = files.iter().map(|file| (text(file.name), bytes(file.bytes, file.num_bytes))).collect();
        let tensors = slice::from_raw_parts(tensors, usize::try_from(num_tensors).unwrap());
        let tensors: Vec<_> = tensors.iter().map(|tensor| view(tensor)).collect();
        (&*user.cast::<Boxed>(), Model { id: raw.id, files }, tensors)
    };
    match execute(&model, &tensors) {
        Ok(()) => 0,
        Err(reason) => {
            let len = reason.len().min(usize::try_from(error_len).unwrap() - 1);
            // SAFETY: `error` has room for `error_len` bytes.
            unsafe {
                error.copy_from(reason.as_ptr().cast(), len);
                *error.add(len) = 0;
            }
            1
        }
    }
}

/// # Safety
/// `name` is a string that lives for `'a`.
unsafe fn text<'a>(name: *const c_char) -> &'a str {
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(name) }.to_str().unwrap()
}

/// # Safety
/// There are `len` bytes that live for `'a`.
unsafe fn bytes<'a>(bytes: *const u8, len: u64) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: as the caller says.
    unsafe { slice::from_raw_parts(bytes, usize::try_from(len).unwrap()) }
}

/// # Safety
/// The name is a string that lives for `'a`.
unsafe fn view(raw: &RawTensor) -> Tensor<'_> {
    Tensor {
        // SAFETY: as the caller says.
        name: unsafe { text(raw.name) },
        dtype: raw.dtype,
        is_input: raw.is_input != 0,
        dims: &raw.dims[..usize::try_from(raw.num_dims).unwrap()],
        data: raw.data,
    }
}
