// Images as matrices [pixels, channels]: what lies under a window, the largest of it, and norms of channels.
#include "reduce.cuh"

struct Grids {
    u32 channels, height, width, places_high, places_wide, side, pace, padding;
};

// Where a pixel of the window at a place lies in the images; false: outside.
__device__ __forceinline__ bool under(const Grids &g, u64 place, u32 tap, u64 *pixel) {
    const u64 image = place / (u64(g.places_high) * g.places_wide);
    const u32 rest = u32(place % (u64(g.places_high) * g.places_wide));
    const u32 line = rest / g.places_wide * g.pace + tap / g.side, column = rest % g.places_wide * g.pace + tap % g.side;
    if (line < g.padding || column < g.padding) return false;
    if (line - g.padding >= g.height || column - g.padding >= g.width) return false;
    *pixel = (image * g.height + line - g.padding) * g.width + column - g.padding;
    return true;
}

// The place whose window has a line or column of the image at this distance from its first; false: none.
__device__ __forceinline__ bool place_of(u32 at, u32 tap, u32 pace, u32 padding, u32 places, u32 *place) {
    if (at + padding < tap || (at + padding - tap) % pace != 0) return false;
    *place = (at + padding - tap) / pace;
    return *place < places;
}

#define GRIDS u32 channels, u32 height, u32 width, u32 places_high, u32 places_wide, u32 side, u32 pace, u32 padding
#define GIVEN {channels, height, width, places_high, places_wide, side, pace, padding}

// x as [places, side · side · channels].
extern "C" __global__ void unfold(const float *x, float *out, u64 count, GRIDS) {
    const Grids g = GIVEN;
    for (u64 i = first_place(); i < count; i += stride()) {
        const u32 channel = u32(i % channels), tap = u32(i / channels % (side * side));
        u64 pixel = 0;
        const bool inside = under(g, i / channels / (side * side), tap, &pixel);
        out[i] = inside ? x[pixel * channels + channel] : 0.0f;
    }
}

// Its gradient: for each value of the images the sum over all windows that have it.
extern "C" __global__ void fold(const float *g, float *dx, u64 count, GRIDS) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 channel = i % channels, pixel = i / channels, image = pixel / (u64(height) * width);
        const u32 line = u32(pixel / width % height), column = u32(pixel % width);
        float sum = 0.0f;
        for (u32 tap = 0; tap < side * side; tap++) {
            u32 high, wide;
            if (!place_of(line, tap / side, pace, padding, places_high, &high)) continue;
            if (!place_of(column, tap % side, pace, padding, places_wide, &wide)) continue;
            const u64 place = (image * places_high + high) * places_wide + wide;
            sum += g[(place * side * side + tap) * channels + channel];
        }
        dx[i] = sum;
    }
}

// The largest under each window, and which place of the window it comes from: the first of equal ones. A NaN is kept.
extern "C" __global__ void max_pool(const float *x, float *out, u32 *origins, u64 count, GRIDS) {
    const Grids g = GIVEN;
    for (u64 i = first_place(); i < count; i += stride()) {
        float top = -INFINITY;
        u32 origin = 0;
        for (u32 tap = 0; tap < side * side; tap++) {
            u64 pixel = 0;
            if (!under(g, i / channels, tap, &pixel)) continue;
            const float value = x[pixel * channels + i % channels];
            if (value > top || value != value) {
                top = value;
                origin = tap;
            }
        }
        out[i] = top;
        origins[i] = origin;
    }
}

extern "C" __global__ void max_pool_back(const float *g, const u32 *origins, float *dx, u64 count, GRIDS) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 channel = i % channels, pixel = i / channels, image = pixel / (u64(height) * width);
        const u32 line = u32(pixel / width % height), column = u32(pixel % width);
        float sum = 0.0f;
        for (u32 tap = 0; tap < side * side; tap++) {
            u32 high, wide;
            if (!place_of(line, tap / side, pace, padding, places_high, &high)) continue;
            if (!place_of(column, tap % side, pace, padding, places_wide, &wide)) continue;
            const u64 at = ((image * places_high + high) * places_wide + wide) * channels + channel;
            if (origins[at] == tap) sum += g[at];
        }
        dx[i] = sum;
    }
}

// Each block's Σ (x − mean)² of its columns.
extern "C" __global__ void square_parts(const float *x, const float *means, float *parts, u64 rows, u32 width, u32 part) {
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    const u64 first = u64(blockIdx.x) * part, last = min(rows, first + part);
    float sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < last; row += 8) {
            const float centred = x[row * width + column] - means[column];
            sum += centred * centred;
        }
    }
    store_column(sum, parts, width);
}

// x · factor + shift of each channel, and ReLU behind it where `relu`. A NaN stays one.
extern "C" __global__ void scale_shift(const float *x, const float *factors, const float *shifts, float *out, u64 count,
                                       u32 width, u32 relu) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const float y = x[i] * factors[i % width] + shifts[i % width];
        out[i] = relu && y < 0.0f ? 0.0f : y;
    }
}

// Whether ReLU let the value through.
__device__ __forceinline__ bool passed(float x, float factor, float shift, u32 relu) {
    return !relu || x * factor + shift > 0.0f;
}

// Each block's Σ g · (x − mean) and Σ g of what was let through.
extern "C" __global__ void batch_norm_parts(const float *x, const float *g, const float *means, const float *factors,
                                            const float *shifts, float *products, float *sums, u64 rows, u32 width,
                                            u32 part, u32 relu) {
    const u32 column = blockIdx.y * 32 + threadIdx.x;
    const u64 first = u64(blockIdx.x) * part, last = min(rows, first + part);
    float product = 0.0f, sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < last; row += 8) {
            const u64 at = row * width + column;
            if (!passed(x[at], factors[column], shifts[column], relu)) continue;
            product += g[at] * (x[at] - means[column]);
            sum += g[at];
        }
    }
    store_column(product, products, width);
    store_column(sum, sums, width);
}

// dx = g · a + (x − mean) · b + c, with g as far as it was let through. `factors` is a as well.
extern "C" __global__ void batch_norm_back(const float *x, const float *g, const float *means, const float *factors,
                                           const float *shifts, const float *b, const float *c, float *dx, u64 count,
                                           u32 width, u32 relu) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u32 column = u32(i % width);
        const float grad = passed(x[i], factors[column], shifts[column], relu) ? g[i] : 0.0f;
        dx[i] = grad * factors[column] + (x[i] - means[column]) * b[column] + c[column];
    }
}
