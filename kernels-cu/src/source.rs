//! The CUDA C++ files.
