// A step of an optimiser, in place, by the formulas of `finetune/optimizer`; and the norm of gradients.
#include "reduce.cuh"

extern "C" __global__ void adamw(const float *g, float *p, float *m, float *v, u64 count, float scale, float keep,
                                 float step, float root, float beta_1, float beta_2, float epsilon) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const float grad = g[i] * scale;
        const float first = beta_1 * m[i] + (1.0f - beta_1) * grad;
        const float second = beta_2 * v[i] + (1.0f - beta_2) * grad * grad;
        m[i] = first;
        v[i] = second;
        p[i] = keep * p[i] - step * (first / (sqrtf(second) * root + epsilon));
    }
}

extern "C" __global__ void sgd_momentum(const float *g, float *p, float *v, u64 count, float scale, float keep,
                                        float rate, float momentum) {
    for (u64 i = first_place(); i < count; i += stride()) {
        v[i] = momentum * v[i] + g[i] * scale;
        p[i] = keep * p[i] - rate * v[i];
    }
}

extern "C" __global__ void sgd(const float *g, float *p, u64 count, float keep, float step) {
    for (u64 i = first_place(); i < count; i += stride()) p[i] = keep * p[i] - step * g[i];
}

// Each block's share of Σ x², in double precision.
extern "C" __global__ void squares(const float *x, double *parts, u64 count) {
    double sum = 0.0;
    for (u64 i = first_place(); i < count; i += stride()) sum += double(x[i]) * double(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void add_squares(const double *parts, double *out, u64 count) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = sum;
}
