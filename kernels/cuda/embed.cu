// Rows of a matrix by number: token embeddings, and their gradients in an order that is always the same.
#include "common.cuh"

// y[j] = w[ids[j]]: w [R, width], ids [n], y [n, width]. A block a row, its columns along y.
template <class Weight>
__device__ __forceinline__ void gather(const Weight* w, const unsigned* ids, float* y, unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < width) y[size_t(blockIdx.x) * width + i] = wide(w[size_t(ids[blockIdx.x]) * width + i]);
}

KERNEL gather_f32(const float* w, const unsigned* ids, float* y, unsigned width) { gather(w, ids, y, width); }
EXPORT(gather_f32)
KERNEL gather_bf16(const __nv_bfloat16* w, const unsigned* ids, float* y, unsigned width) {
    gather(w, ids, y, width);
}
EXPORT(gather_bf16)

// dw[ids[r]] += the sum of d[places[j]] for j in starts[r]..starts[r + 1], one after another: d [n, width] float32,
// places [n], ids [runs], starts [runs + 1]. A block a run, its columns along y.
KERNEL scatter_add(const float* d, const unsigned* places, const unsigned* ids, const unsigned* starts, float* dw,
                   unsigned width) {
    const unsigned i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const unsigned run = blockIdx.x;
    float& to = dw[size_t(ids[run]) * width + i];
    float sum = to;
    for (unsigned j = starts[run]; j < starts[run + 1]; j++) sum += d[size_t(places[j]) * width + i];
    to = sum;
}
EXPORT(scatter_add)
