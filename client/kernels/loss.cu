// Cross-entropy of logits [rows, width] with all that `ops/cross_entropy.rs` adds to it; one block a row.
#include "reduce.cuh"

struct Loss {
    // Empty ones are told by the flags.
    const float *offset, *weights;
    u32 width, shifted, weighted;
    double smoothing, gamma;
};

__device__ __forceinline__ float logit(const Loss &l, const float *x, u32 i) {
    return l.shifted ? x[i] + l.offset[i] : x[i];
}

__device__ __forceinline__ double weight(const Loss &l, u32 label) { return l.weighted ? l.weights[label] : 1.0; }

// How much the term of label i counts in a row of label y.
__device__ __forceinline__ double target(const Loss &l, u32 i, u32 y) {
    const double spread = l.smoothing / l.width * weight(l, i);
    return i == y ? spread + (1.0 - l.smoothing) * weight(l, y) : spread;
}

// (1 − p)^γ · −log p of a −log p.
__device__ __forceinline__ double focal(const Loss &l, double surprise) {
    return l.gamma == 0.0 ? surprise : pow(-expm1(-surprise), l.gamma) * surprise;
}

// Its derivative by log p. log p / (1 − p) goes to −1 where p goes to 1.
__device__ __forceinline__ double focal_slope(const Loss &l, double surprise) {
    if (l.gamma == 0.0) return -1.0;
    const double rest = -expm1(-surprise);
    const double ratio = rest == 0.0 ? -1.0 : -surprise / rest;
    return pow(rest, l.gamma) * (l.gamma * exp(-surprise) * ratio - 1.0);
}

// The largest logit m, and Σ exp(x − m).
struct Total {
    float top;
    double sum;
};

__device__ Total total_of(const Loss &l, const float *x) {
    float top = -INFINITY, sum = 0.0f;
    for (u32 i = threadIdx.x; i < l.width; i += blockDim.x) top = fmaxf(top, logit(l, x, i));
    top = block_max(top);
    for (u32 i = threadIdx.x; i < l.width; i += blockDim.x) sum += expf(logit(l, x, i) - top);
    return {top, block_sum(double(sum))};
}

// What each row adds to the loss.
extern "C" __global__ void __launch_bounds__(1024)
    loss_rows(const float *x, const float *offset, const float *weights, const u32 *labels, double *values, u32 width,
              u32 shifted, u32 weighted, double smoothing, double gamma) {
    const Loss l = {offset, weights, width, shifted, weighted, smoothing, gamma};
    x += u64(blockIdx.x) * width;
    const u32 label = labels[blockIdx.x];
    const Total total = total_of(l, x);
    const double log_sum = double(total.top) + log(total.sum);
    double value = 0.0;
    if (smoothing == 0.0 && gamma == 0.0) {
        value = weight(l, label) * (log_sum - double(logit(l, x, label)));
    } else {
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            const double share = target(l, i, label);
            if (share != 0.0) value += share * focal(l, log_sum - double(logit(l, x, i)));
        }
        value = block_sum(value);
    }
    if (threadIdx.x == 0) values[blockIdx.x] = value;
}

// upstream / divisor times the gradient, in place of the logits. With t the target and f' the slope of each term, it is
// t_j·f'_j − p_j·Σ t_c·f'_c.
extern "C" __global__ void __launch_bounds__(1024)
    loss_gradient(const float *offset, const float *weights, const u32 *labels, const float *upstream, float *x, u32 width,
                  u32 shifted, u32 weighted, double smoothing, double gamma, double divisor) {
    const Loss l = {offset, weights, width, shifted, weighted, smoothing, gamma};
    x += u64(blockIdx.x) * width;
    const u32 label = labels[blockIdx.x];
    const double factor = double(upstream[0]) / divisor;
    const Total total = total_of(l, x);
    if (smoothing == 0.0 && gamma == 0.0) {
        const double whole = factor * weight(l, label);
        const float share = float(whole / total.sum);
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            const float p = share * expf(logit(l, x, i) - total.top);
            x[i] = i == label ? float(double(p) - whole) : p;
        }
        return;
    }
    const double log_sum = double(total.top) + log(total.sum);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const double share = target(l, i, label);
        if (share != 0.0) sum += share * focal_slope(l, log_sum - double(logit(l, x, i)));
    }
    sum = block_sum(sum);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const double share = target(l, i, label), surprise = log_sum - double(logit(l, x, i));
        const double term = share != 0.0 ? share * focal_slope(l, surprise) : 0.0;
        x[i] = float((term - exp(-surprise) * sum) * factor);
    }
}

// The sum over divisor; one block.
extern "C" __global__ void __launch_bounds__(1024) loss_total(const double *values, float *out, u64 rows, double divisor) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < rows; i += blockDim.x) sum += values[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = float(sum / divisor);
}
