// What is done value by value.
#include "mask.cuh"

enum Activation : u32 { GELU = 0, GELU_TANH = 1, RELU = 2, TANH = 3 };

// √(2/π) and the cubic's factor in the approximation of GELU by tanh.
#define ROOT 0.7978846f
#define CUBIC 0.044715f

__device__ __forceinline__ float activated(float x, u32 kind) {
    switch (kind) {
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(ROOT * (x + CUBIC * x * x * x)));
        case RELU: return x > 0.0f ? x : 0.0f;
        default: return tanhf(x);
    }
}

__device__ __forceinline__ float slope(float x, u32 kind) {
    switch (kind) {
        case GELU: return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
        case GELU_TANH: {
            const float t = tanhf(ROOT * (x + CUBIC * x * x * x));
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBIC * x * x);
        }
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        default: {
            const float t = tanhf(x);
            return 1.0f - t * t;
        }
    }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void activation(const float *x, float *out, u64 count, u32 kind) {
    for (u64 i = first_place(); i < count; i += stride()) out[i] = activated(x[i], kind);
}

extern "C" __global__ void activation_back(const float *x, const float *g, float *dx, u64 count, u32 kind) {
    for (u64 i = first_place(); i < count; i += stride()) dx[i] = g[i] * slope(x[i], kind);
}

// activation(a) ∘ b, of rows that hold a and then b; `count` and `width` are those of the result.
extern "C" __global__ void gated(const float *x, float *out, u64 count, u32 width, u32 kind) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 at = i / width * 2 * width + i % width;
        out[i] = activated(x[at], kind) * x[at + width];
    }
}

extern "C" __global__ void gated_back(const float *x, const float *g, float *dx, u64 count, u32 width, u32 kind) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 at = i / width * 2 * width + i % width;
        const float a = x[at], b = x[at + width];
        dx[at] = g[i] * b * slope(a, kind);
        dx[at + width] = g[i] * activated(a, kind);
    }
}

// silu(gate) ∘ up
extern "C" __global__ void swiglu(const float *gate, const float *up, float *out, u64 count) {
    for (u64 i = first_place(); i < count; i += stride()) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

extern "C" __global__ void swiglu_back(const float *gate, const float *up, const float *g, float *d_gate, float *d_up,
                                       u64 count) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const float a = gate[i], open = sigmoid(a);
        d_gate[i] = g[i] * up[i] * open * (1.0f + a * (1.0f - open));
        d_up[i] = g[i] * a * open;
    }
}

// x [rows, width] + bias, in place.
extern "C" __global__ void add_bias(const float *bias, float *x, u64 count, u32 width) {
    for (u64 i = first_place(); i < count; i += stride()) x[i] += bias[i % width];
}

extern "C" __global__ void add(const float *x, const float *y, float *out, u64 count) {
    for (u64 i = first_place(); i < count; i += stride()) out[i] = x[i] + y[i];
}

// x · factor, the factor being one value on the device.
extern "C" __global__ void times_scalar(const float *x, const float *factor, float *out, u64 count) {
    const float by = factor[0];
    for (u64 i = first_place(); i < count; i += stride()) out[i] = x[i] * by;
}

extern "C" __global__ void add_relu(const float *x, const float *y, float *out, u64 count) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const float sum = x[i] + y[i];
        out[i] = sum < 0.0f ? 0.0f : sum;
    }
}

// The gradient where the sum let it through.
extern "C" __global__ void add_relu_back(const float *x, const float *y, const float *g, float *dx, u64 count) {
    for (u64 i = first_place(); i < count; i += stride()) dx[i] = x[i] + y[i] > 0.0f ? g[i] : 0.0f;
}

extern "C" __global__ void drop(const float *x, float *out, u64 count, u32 width, u64 key, u32 threshold, float scale) {
    const Mask mask = {key, threshold, scale};
    for (u64 i = first_place(); i < count; i += stride()) {
        out[i] = x[i] * kept(mask, i / width, u32(i % width), width);
    }
}

// dropout(x) + shortcut
extern "C" __global__ void drop_add(const float *x, const float *shortcut, float *out, u64 count, u32 width, u64 key,
                                    u32 threshold, float scale) {
    const Mask mask = {key, threshold, scale};
    for (u64 i = first_place(); i < count; i += stride()) {
        out[i] = x[i] * kept(mask, i / width, u32(i % width), width) + shortcut[i];
    }
}
