//! What a cubin says about its kernels.
