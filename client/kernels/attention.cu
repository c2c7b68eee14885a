// The parts of attention that are no matrix products: heads into matrices of their own and back, and the softmax over what
// a query sees. Scores lie as [sequences, heads, queries, keys]; one warp a row, four rows a block.
#include "mask.cuh"

#ifdef __CUDACC__
#include <cuda_bf16.h>
__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void store(__nv_bfloat16 *at, float x) { *at = __float2bfloat16(x); }
#endif
__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ void store(float *at, float x) { *at = x; }

// x [sequences · length, heads · depth] as [sequences, heads, length, depth], from sequence `first` on.
template <typename T>
__device__ void split(const float *x, T *out, u64 count, u32 first, u32 length, u32 heads, u32 depth) {
    x += u64(first) * length * heads * depth;
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 column = i % depth, row = i / depth % length, head = i / depth / length % heads;
        const u64 sequence = i / depth / length / heads;
        store(out + i, x[((sequence * length + row) * heads + head) * depth + column]);
    }
}

// The way back.
template <typename T>
__device__ void merge(const T *x, float *out, u64 count, u32 first, u32 length, u32 heads, u32 depth) {
    out += u64(first) * length * heads * depth;
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 column = i % depth, head = i / depth % heads, row = i / depth / heads % length;
        const u64 sequence = i / depth / heads / length;
        out[i] = wide(x[((sequence * heads + head) * length + row) * depth + column]);
    }
}

// Which keys a query sees: those of its sequence, within the window, and not behind it where `causal`.
struct Sight {
    u32 begin, end;
};

__device__ __forceinline__ Sight sight(u32 query, u32 length, u32 window, u32 causal) {
    const u64 end = causal ? u64(query) + 1 : u64(query) + window + 1;
    return {query > window ? query - window : 0, u32(end < length ? end : length)};
}

// What all kernels over scores are told.
struct Scores {
    u64 rows;
    // The sequence and the row of the mask that the first row is.
    u32 first;
    u32 heads, queries, keys, window, causal;
    float scale;
    Mask mask;
};

__device__ __forceinline__ u64 row_of_warp() { return u64(blockIdx.x) * 4 + threadIdx.y; }

// softmax(scale · scores) over what is seen, 0 elsewhere, in place. With `both`, that is left without dropout, and
// `dropped` gets it with dropout; else it is with dropout itself.
template <typename T, bool both>
__device__ void attend(const u32 *lengths, T *scores, T *dropped, Scores s) {
    const u64 row = row_of_warp();
    if (row >= s.rows) return;
    const u64 first_row = u64(s.first) * s.heads * s.queries;
    const Sight seen = sight(u32(row % s.queries), lengths[s.first + row / s.queries / s.heads], s.window, s.causal);
    T *values = scores + row * s.keys;
    float top = -INFINITY;
    for (u32 key = seen.begin + threadIdx.x; key < seen.end; key += 32) top = fmaxf(top, wide(values[key]) * s.scale);
    top = warp_max(top);
    float sum = 0.0f;
    for (u32 key = seen.begin + threadIdx.x; key < seen.end; key += 32) sum += expf(wide(values[key]) * s.scale - top);
    const float share = 1.0f / warp_sum(sum);
    for (u32 key = threadIdx.x; key < s.keys; key += 32) {
        const bool hidden = key < seen.begin || key >= seen.end;
        const float p = hidden ? 0.0f : expf(wide(values[key]) * s.scale - top) * share;
        const float factor = kept(s.mask, first_row + row, key, s.keys);
        if (both) {
            store(values + key, p);
            store(dropped + row * s.keys + key, p * factor);
        } else {
            store(values + key, p * factor);
        }
    }
}

// With P the probabilities, D the mask and `grad` the gradient of P∘D: scale · P∘(grad∘D − Σ grad∘D∘P), in place of `grad`.
template <typename T> __device__ void attend_back(const T *probabilities, T *grad, Scores s) {
    const u64 row = row_of_warp();
    if (row >= s.rows) return;
    const u64 mask_row = u64(s.first) * s.heads * s.queries + row;
    const T *p = probabilities + row * s.keys;
    T *g = grad + row * s.keys;
    float sum = 0.0f;
    for (u32 key = threadIdx.x; key < s.keys; key += 32) {
        sum += wide(g[key]) * kept(s.mask, mask_row, key, s.keys) * wide(p[key]);
    }
    sum = warp_sum(sum);
    for (u32 key = threadIdx.x; key < s.keys; key += 32) {
        const float grad_p = wide(g[key]) * kept(s.mask, mask_row, key, s.keys);
        store(g + key, s.scale * wide(p[key]) * (grad_p - sum));
    }
}

#define SCORES                                                                                                      \
    u64 rows, u32 first, u32 heads, u32 queries, u32 keys, u32 window, u32 causal, float scale, u64 key,            \
        u32 threshold, float kept_scale
#define GIVEN {rows, first, heads, queries, keys, window, causal, scale, {key, threshold, kept_scale}}

#define KERNELS(T, NAME)                                                                                            \
    extern "C" __global__ void split_##NAME(const float *x, T *out, u64 count, u32 first, u32 length, u32 heads,    \
                                            u32 depth) {                                                            \
        split<T>(x, out, count, first, length, heads, depth);                                                       \
    }                                                                                                               \
    extern "C" __global__ void merge_##NAME(const T *x, float *out, u64 count, u32 first, u32 length, u32 heads,    \
                                            u32 depth) {                                                            \
        merge<T>(x, out, count, first, length, heads, depth);                                                       \
    }                                                                                                               \
    extern "C" __global__ void attend_##NAME(const u32 *lengths, T *scores, SCORES) {                               \
        attend<T, false>(lengths, scores, scores, GIVEN);                                                           \
    }                                                                                                               \
    extern "C" __global__ void attend_both_##NAME(const u32 *lengths, T *scores, T *dropped, SCORES) {              \
        attend<T, true>(lengths, scores, dropped, GIVEN);                                                           \
    }                                                                                                               \
    extern "C" __global__ void attend_back_##NAME(const T *probabilities, T *grad, SCORES) {                        \
        attend_back<T>(probabilities, grad, GIVEN);                                                                 \
    }

KERNELS(float, f32)
#ifdef __CUDACC__
KERNELS(__nv_bfloat16, bf16)
#endif
