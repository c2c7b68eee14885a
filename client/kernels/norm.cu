// Layer and root mean square normalisation of the rows of x [rows, width]; one block a row. In every kernel of this folder
// come first the arguments that are read, then those that are written, then numbers.
#include "reduce.cuh"

// The mean and the reciprocal standard deviation of each row are kept for the backward pass.
extern "C" __global__ void layer_norm(const float *x, const float *weight, const float *bias, float *out, float *means,
                                      float *scales, u32 width, u32 biased, float epsilon) {
    x += u64(blockIdx.x) * width;
    out += u64(blockIdx.x) * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    const float mean = block_sum(sum) / width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        out[i] = (x[i] - mean) * scale * weight[i] + (biased ? bias[i] : 0.0f);
    }
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        scales[blockIdx.x] = scale;
    }
}

extern "C" __global__ void rms_norm(const float *x, const float *weight, float *out, float *scales, u32 width,
                                    float epsilon) {
    x += u64(blockIdx.x) * width;
    out += u64(blockIdx.x) * width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += x[i] * x[i];
    const float scale = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[i] = x[i] * scale * weight[i];
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// With y the normalised row and g' = g·weight: dx = scale · (g' − mean(g') − y · mean(g'·y)).
extern "C" __global__ void layer_norm_back(const float *x, const float *weight, const float *g, const float *means,
                                           const float *scales, float *dx, u32 width) {
    const u64 first = u64(blockIdx.x) * width;
    const float mean = means[blockIdx.x], scale = scales[blockIdx.x];
    float sum = 0.0f, product = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float grad = g[first + i] * weight[i];
        sum += grad;
        product += grad * (x[first + i] - mean) * scale;
    }
    sum = block_sum(sum) / width;
    product = block_sum(product) / width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float y = (x[first + i] - mean) * scale;
        dx[first + i] = scale * (g[first + i] * weight[i] - sum - y * product);
    }
}

// The same without the means of the row and of g'.
extern "C" __global__ void rms_norm_back(const float *x, const float *weight, const float *g, const float *scales,
                                         float *dx, u32 width) {
    const u64 first = u64(blockIdx.x) * width;
    const float scale = scales[blockIdx.x];
    float product = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) product += g[first + i] * weight[i] * x[first + i] * scale;
    product = block_sum(product) / width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        dx[first + i] = scale * (g[first + i] * weight[i] - x[first + i] * scale * product);
    }
}

extern "C" __global__ void column_parts(const float *g, float *parts, u64 rows, u32 width, u32 part) {
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    const u64 first = u64(blockIdx.x) * part, last = min(rows, first + part);
    float sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < last; row += 8) sum += g[row * width + column];
    }
    store_column(sum, parts, width);
}

// Σ g·y, with y the normalised rows; and Σ g.
extern "C" __global__ void layer_norm_parts(const float *x, const float *g, const float *means, const float *scales,
                                            float *weight_parts, float *bias_parts, u64 rows, u32 width, u32 part) {
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    const u64 first = u64(blockIdx.x) * part, last = min(rows, first + part);
    float products = 0.0f, sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < last; row += 8) {
            const float grad = g[row * width + column];
            products += grad * (x[row * width + column] - means[row]) * scales[row];
            sum += grad;
        }
    }
    store_column(products, weight_parts, width);
    store_column(sum, bias_parts, width);
}

extern "C" __global__ void rms_norm_parts(const float *x, const float *g, const float *scales, float *weight_parts,
                                          u64 rows, u32 width, u32 part) {
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    const u64 first = u64(blockIdx.x) * part, last = min(rows, first + part);
    float products = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < last; row += 8) {
            products += g[row * width + column] * x[row * width + column] * scales[row];
        }
    }
    store_column(products, weight_parts, width);
}

extern "C" __global__ void add_parts(const float *parts, float *out, u32 count, u32 width) {
    const u64 column = first_place();
    if (column >= width) return;
    float sum = 0.0f;
    for (u32 part = 0; part < count; part++) sum += parts[u64(part) * width + column];
    out[column] = sum;
}
