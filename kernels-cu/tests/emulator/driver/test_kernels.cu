// Kernels for the tests of the emulated driver.
#include "common/types.cuh"

extern "C" __global__ void add_to_all(int* values, int count, const int* addend) {
    int idx = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (idx < count) values[idx] += *addend;
}

extern "C" __global__ void store_at(int* values, long long idx, int value) { values[idx] = value; }

extern "C" __global__ void copy_one(int* to, const int* from) { *to = *from; }

// Arguments of every size.
extern "C" __global__ void sum_arguments(double* out, char a, short b, int c, long long d, float e, double f) {
    *out = double(a) + double(b) + double(c) + double(d) + double(e) + f;
}

extern "C" __global__ void fill_shared(int* out, int count) {
    TAKT_DYNAMIC_SHARED(int, values);
    for (int idx = int(threadIdx.x); idx < count; idx += int(blockDim.x)) values[idx] = idx;
    __syncthreads();
    if (threadIdx.x == 0) *out = values[count - 1];
}

// Threads wait at different places: undefined on a GPU.
extern "C" __global__ void wait_apart() {
    if (threadIdx.x == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
