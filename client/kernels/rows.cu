// What takes rows of a matrix [rows, width] apart and together.
#include "reduce.cuh"

extern "C" __global__ void gather(const float *table, const u32 *ids, float *out, u64 count, u32 width) {
    for (u64 i = first_place(); i < count; i += stride()) out[i] = table[u64(ids[i / width]) * width + i % width];
}

// Sum of three embeddings; `ids` has all of words, then of positions, then of types.
extern "C" __global__ void embed(const float *words, const float *positions, const float *types, const u32 *ids,
                                 float *out, u64 count, u32 width) {
    const u64 tokens = count / width;
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 token = i / width, column = i % width;
        out[i] = words[u64(ids[token]) * width + column] + types[u64(ids[2 * tokens + token]) * width + column] +
                 positions[u64(ids[tokens + token]) * width + column];
    }
}

// The gradient of a gathered table, in a fixed order and without atomics: `order` lists the rows of g by the row of the
// table that they go to, cut into pieces at `starts`. Blocks lie as [pieces, columns].
extern "C" __global__ void scatter_parts(const float *g, const u32 *order, const u32 *starts, float *parts, u32 width) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (u32 i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum += g[u64(order[i]) * width + column];
    parts[u64(blockIdx.x) * width + column] = sum;
}

// Row `rows[i]` of the table gets the sum of the pieces from `pieces[i]` to `pieces[i + 1]`. Blocks lie as [rows, columns].
extern "C" __global__ void scatter_rows(const float *parts, const u32 *rows, const u32 *pieces, float *table, u32 width) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (u32 i = pieces[blockIdx.x]; i < pieces[blockIdx.x + 1]; i++) sum += parts[u64(i) * width + column];
    table[u64(rows[blockIdx.x]) * width + column] = sum;
}

// The mean of each sequence's rows; `spans` has the first row and how many, for each. Blocks lie as [sequences, columns].
extern "C" __global__ void mean_rows(const float *x, const u32 *spans, float *out, u32 width) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const u64 first = spans[2 * blockIdx.x];
    const u32 rows = spans[2 * blockIdx.x + 1];
    float sum = 0.0f;
    for (u32 row = 0; row < rows; row++) sum += x[(first + row) * width + column];
    out[u64(blockIdx.x) * width + column] = sum / rows;
}

extern "C" __global__ void mean_rows_back(const float *g, const u32 *spans, float *dx, u32 width) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const u64 first = spans[2 * blockIdx.x];
    const u32 rows = spans[2 * blockIdx.x + 1];
    const float share = g[u64(blockIdx.x) * width + column] / rows;
    for (u32 row = 0; row < rows; row++) dx[(first + row) * width + column] = share;
}

// Rotary positions of x [sequences · length, heads · 2 · half]; the angles are those of a row's place in its sequence.
// `count` is that of the pairs; `direction` is 1, or −1 to turn back.
extern "C" __global__ void rotary(const float *x, const float *cosines, const float *sines, float *out, u64 count,
                                  u32 width, u32 half, u32 length, float direction) {
    for (u64 pair = first_place(); pair < count; pair += stride()) {
        const u64 row = pair / (width / 2);
        const u32 place = u32(pair % (width / 2)), i = place % half;
        const u64 at = row * width + place / half * 2 * half + i, angle = row % length * half + i;
        const float cosine = cosines[angle], sine = direction * sines[angle];
        const float a = x[at], b = x[at + half];
        out[at] = a * cosine - b * sine;
        out[at + half] = b * cosine + a * sine;
    }
}

// [sequences, patches, width] behind a row `first` each, plus a row of `positions` for each place.
extern "C" __global__ void sequence(const float *patches, const float *first, const float *positions, float *out,
                                    u64 count, u32 width, u32 length) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 column = i % width, row = i / width, place = row % length, image = row / length;
        const float x =
            place == 0 ? first[column] : patches[(image * (length - 1) + place - 1) * width + column];
        out[i] = x + positions[place * width + column];
    }
}

// Leaves the first row of each sequence of `length` rows out; `count` is that of the result.
extern "C" __global__ void behind_first(const float *g, float *out, u64 count, u32 width, u32 length) {
    for (u64 i = first_place(); i < count; i += stride()) {
        const u64 column = i % width, row = i / width;
        out[i] = g[(row / (length - 1) * length + row % (length - 1) + 1) * width + column];
    }
}
