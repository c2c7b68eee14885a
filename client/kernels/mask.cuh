// Dropout masks out of a counter: the numbers that `ops/dropout.rs` draws.
#pragma once

#include "reduce.cuh"

struct Mask {
    u64 key;
    // Of 65536; 0: nothing is dropped.
    u32 threshold;
    float scale;
};

// The output function of SplitMix64.
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// 0 or the scale, at a place of a matrix of rows of this width. Sixteen words give 64 neighbours their 16 bits each.
__device__ __forceinline__ float kept(Mask mask, u64 row, u32 column, u32 width) {
    if (mask.threshold == 0) return 1.0f;
    const u64 blocks = (width + 63) / 64;
    const u64 word = (row * blocks + column / 64) * 16 + column % 16;
    const u32 lane = column % 64 / 16;
    const u32 draw = u32(mix(mask.key + word * 0x9e3779b97f4a7c15ull) >> (16 * lane)) & 0xffffu;
    return draw < mask.threshold ? 0.0f : mask.scale;
}
