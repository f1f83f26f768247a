//! CUDA C++ to cubin, with NVRTC.
