// Sums and maxima over a warp and a block. Every thread gets the result, and the order of the additions is fixed.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

template <typename T> __device__ __forceinline__ T warp_sum(T x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Over a block of one dimension, whole warps; every thread must come here.
template <typename T> __device__ __forceinline__ T block_sum(T x) {
    __shared__ T parts[32];
    const u32 lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? parts[lane] : T(0));
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    const u32 lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_max(x);
    if (lane == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_max(lane < warps ? parts[lane] : -INFINITY);
    __syncthreads();
    return x;
}

// Sums over columns go in two steps: each block of 32 × 8 threads adds up 32 columns of `part` rows, `add_parts` of norm.cu
// the parts. Blocks lie as [parts, columns / 32].
__device__ __forceinline__ void store_column(float sum, float *parts, u32 width) {
    __shared__ float lines[8][32];
    lines[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    if (threadIdx.y == 0 && column < width) {
        sum = 0.0f;
        for (u32 line = 0; line < 8; line++) sum += lines[line][threadIdx.x];
        parts[u64(blockIdx.x) * width + column] = sum;
    }
    __syncthreads();
}

// The first place of this thread in a list that all threads walk together, and how far apart its places are.
__device__ __forceinline__ u64 first_place() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 stride() { return u64(gridDim.x) * blockDim.x; }
