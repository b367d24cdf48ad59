// The functions of libcublasLt.so.13 that kernels::card calls: D = alpha op(A) op(B) + beta C, matrices column after
// column, summed in double and rounded once (cuBLAS documentation, "cublasLtMatmul"). Which of its kernels the library takes
// for a shape is its own, and with it the order of a sum that is not exact: of about every second shape its last bit is
// another here.
#include "driver.h"

namespace {

using namespace driver;

// cublasStatus_t, cudaDataType, cublasOperation_t and the attributes, as the headers number them.
constexpr int STATUS_INVALID = 7, STATUS_UNSUPPORTED = 15;
constexpr int R_32F = 0, R_16BF = 14;
constexpr int DESC_TRANSA = 3, DESC_TRANSB = 4;
constexpr int PREF_WORKSPACE = 1, PREF_REDUCTION = 3, PREF_ALIGNMENT_A = 5;
// Parts of a sum in the type of the computation (cublasLtReductionScheme_t).
constexpr uint32_t REDUCTION_COMPUTE_TYPE = 2;

struct Description {
    int transposed[2] = {0, 0};
};
struct Matrix {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Preference {
    // Of A, B, C and D.
    uint32_t alignments[4] = {256, 256, 256, 256};
    uint64_t workspace = 0;
    uint32_t reduction = 7;
};
// In cublasLtMatmulAlgo_t's 64 bytes.
struct Algorithm {
    uint32_t alignments[4];
    uint64_t workspace, rest[5];
};
static_assert(sizeof(Algorithm) == 64);
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

double element(const Matrix& of, const void* at, uint64_t row, uint64_t column) {
    const uint64_t place = column * of.stride + row;
    if (of.type == R_32F) return static_cast<const float*>(at)[place];
    return __bfloat162float(static_cast<const __nv_bfloat16*>(at)[place]);
}

bool is_sound(const Matrix& of) {
    return (of.type == R_32F || of.type == R_16BF) && of.stride >= int64_t(of.rows);
}

// Whether all of it lies in the card's memory.
bool is_there(const Matrix& of, const void* at) {
    const uint64_t elements = (of.columns - 1) * of.stride + of.rows;
    return is_on_card(reinterpret_cast<uint64_t>(at), elements * (of.type == R_32F ? sizeof(float) : 2));
}

// Whether A and B, as they take part, give a matrix of C's and D's shape; of float32 the result is float32.
bool fit(const Description& of, const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
    const uint64_t m = of.transposed[0] ? a.columns : a.rows, k = of.transposed[0] ? a.rows : a.columns;
    const uint64_t n = of.transposed[1] ? b.rows : b.columns, other = of.transposed[1] ? b.columns : b.rows;
    const bool shapes = k == other && d.rows == m && d.columns == n && c.rows == m && c.columns == n;
    const bool types = a.type == b.type && c.type == d.type && (a.type == R_16BF || d.type == R_32F);
    return shapes && types && is_sound(a) && is_sound(b) && is_sound(c) && is_sound(d);
}

}  // namespace

#define LIBRARY(name, ...) \
    extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

// Of CUDA's runtime that it was built with, 1000 · major + 10 · minor.
LIBRARY(cublasLtGetCudartVersion, void) { return setting("library", 13000); }
LIBRARY(cublasLtCreate, void** handle) {
    *handle = &lock;
    return SUCCESS;
}
LIBRARY(cublasLtDestroy, void*) { return SUCCESS; }
LIBRARY(cublasLtMatmulDescCreate, Description** to, int, int scale) {
    *to = new Description;
    return scale == R_32F ? SUCCESS : STATUS_UNSUPPORTED;
}
LIBRARY(cublasLtMatmulDescDestroy, Description* of) {
    delete of;
    return SUCCESS;
}
LIBRARY(cublasLtMatmulDescSetAttribute, Description* of, int which, const void* value, size_t bytes) {
    if ((which != DESC_TRANSA && which != DESC_TRANSB) || bytes != sizeof(int)) return STATUS_INVALID;
    std::memcpy(&of->transposed[which - DESC_TRANSA], value, bytes);
    return SUCCESS;
}
LIBRARY(cublasLtMatrixLayoutCreate, Matrix** to, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *to = new Matrix{type, rows, columns, stride};
    return is_sound(**to) ? SUCCESS : STATUS_INVALID;
}
LIBRARY(cublasLtMatrixLayoutDestroy, Matrix* of) {
    delete of;
    return SUCCESS;
}
LIBRARY(cublasLtMatmulPreferenceCreate, Preference** to) {
    *to = new Preference;
    return SUCCESS;
}
LIBRARY(cublasLtMatmulPreferenceDestroy, Preference* of) {
    delete of;
    return SUCCESS;
}
LIBRARY(cublasLtMatmulPreferenceSetAttribute, Preference* of, int which, const void* value, size_t bytes) {
    if (which == PREF_WORKSPACE && bytes == sizeof of->workspace) return std::memcpy(&of->workspace, value, bytes), SUCCESS;
    if (which == PREF_REDUCTION && bytes == sizeof of->reduction) return std::memcpy(&of->reduction, value, bytes), SUCCESS;
    const int matrix = which - PREF_ALIGNMENT_A;
    if (matrix < 0 || matrix > 3 || bytes != sizeof(uint32_t)) return STATUS_INVALID;
    std::memcpy(&of->alignments[matrix], value, bytes);
    return SUCCESS;
}
LIBRARY(cublasLtMatmulAlgoGetHeuristic, void*, const Description* of, const Matrix* a, const Matrix* b, const Matrix* c,
        const Matrix* d, const Preference* preference, int wanted, Heuristic* to, int* found) {
    *found = 0;
    if (wanted < 1 || !fit(*of, *a, *b, *c, *d)) return STATUS_INVALID;
    // Any other adds parts in bfloat16, or in the order in which they come.
    if (preference->reduction != REDUCTION_COMPUTE_TYPE) return STATUS_UNSUPPORTED;
    *to = {};
    std::memcpy(to->algorithm.alignments, preference->alignments, sizeof preference->alignments);
    to->algorithm.workspace = to->workspace = preference->workspace;
    *found = 1;
    return SUCCESS;
}
LIBRARY(cublasLtMatmul, void*, const Description* of, const float* alpha, const void* a, const Matrix* of_a,
        const void* b, const Matrix* of_b, const float* beta, const void* c, const Matrix* of_c, void* d,
        const Matrix* of_d, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, Stream* stream) {
    std::lock_guard held(lock);
    if (lost) return STATUS_INVALID;
    const void* at[4] = {a, b, c, d};
    for (int matrix = 0; matrix < 4; matrix++)
        if (reinterpret_cast<uintptr_t>(at[matrix]) % algorithm->alignments[matrix]) return STATUS_INVALID;
    const Matrix* matrices[4] = {of_a, of_b, of_c, of_d};
    for (int matrix = 0; matrix < 4; matrix++)
        if (!is_there(*matrices[matrix], at[matrix])) return STATUS_INVALID;
    if (!fit(*of, *of_a, *of_b, *of_c, *of_d) || !workspace || workspace_bytes < algorithm->workspace) return STATUS_INVALID;
    const auto product = [=, of = *of, alpha = *alpha, beta = *beta, of_a = *of_a, of_b = *of_b, of_c = *of_c, of_d = *of_d] {
        const uint64_t k = of.transposed[0] ? of_a.rows : of_a.columns;
        const bool other_order = (of_d.rows * 0x9e3779b97f4a7c15 + of_d.columns * 0xc2b2ae3d27d4eb4f + k) >> 63;
        for (uint64_t column = 0; column < of_d.columns; column++)
            for (uint64_t row = 0; row < of_d.rows; row++) {
                double sum = 0;
                for (uint64_t i = 0; i < k; i++)
                    sum += (of.transposed[0] ? element(of_a, a, i, row) : element(of_a, a, row, i))
                         * (of.transposed[1] ? element(of_b, b, column, i) : element(of_b, b, i, column));
                // What is multiplied with 0 is not read.
                const double exact = alpha * sum + (beta != 0 ? beta * element(of_c, c, row, column) : 0);
                const float once = float(exact);
                const float result = other_order && exact != once ? std::nextafter(once, 2 * once) : once;
                const uint64_t place = column * of_d.stride + row;
                if (of_d.type == R_32F) static_cast<float*>(d)[place] = result;
                else static_cast<__nv_bfloat16*>(d)[place] = __float2bfloat16_rn(result);
            }
        return int(SUCCESS);
    };
    if (few()) return SUCCESS;
    // The workspace is the library's to write.
    put(stream, [=] { return std::memset(workspace, 0xff, std::min<size_t>(workspace_bytes, 4096)), int(SUCCESS); });
    return put(stream, product);
}
