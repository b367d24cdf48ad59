// From float32 to what products read.
#include "common.cuh"

// y = x rounded to bfloat16, to nearest, ties to even: x and y [count], four elements a thread.
KERNEL round_bf16(const float* x, __nv_bfloat16* y, unsigned count) {
    const size_t at = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at + 4 <= count) {
        store4(y, at, load4(x, at));
    } else {
        for (size_t i = at; i < count; i++) narrow(x[i], y[i]);
    }
}
EXPORT(round_bf16)
