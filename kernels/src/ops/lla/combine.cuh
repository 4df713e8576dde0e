// The middle and the end of decoding: the dense solve, the pass over the values, the merge. `decode.cuh` has the layout.
#pragma once

#include "decode.cuh"

template <int D>
struct CombineLayout {
    /// Threads that share a row of the system.
    static constexpr int kShare = 4;
    static constexpr int kThreads = kShare * D;
    static constexpr int kBytes = (2 * D + kThreads / kLanes) * 4;
};

/// The threads of a row keep it in registers: columns `4 (kShare i + part)` and the three after.
template <int D>
struct Combine {
    const LlaParams& params;
    float *mean, *vector, *partials;
    static constexpr int kShare = CombineLayout<D>::kShare;
    static constexpr int kOwn = D / kShare;
    int row, part;
    float matrix[kOwn];

    __device__ explicit Combine(const LlaParams& params) : params(params) {
        mean = reinterpret_cast<float*>(shared_memory());
        vector = mean + D;
        partials = vector + D;
        row = int(threadIdx.x) / kShare;
        part = int(threadIdx.x) % kShare;
    }

    __device__ const float* record(uint32_t split) const {
        return params.records + (uint64_t(blockIdx.x) * params.num_splits + split) * record_len(D);
    }

    /// The sum over the block, the same bits in every thread.
    __device__ float sum_block(float value) {
        value = sum_lanes<kLanes>(value);
        if (threadIdx.x % kLanes == 0) partials[threadIdx.x / kLanes] = value;
        __syncthreads();
        float sum = 0.0f;
        for (int warp = 0; warp < CombineLayout<D>::kThreads / kLanes; ++warp) sum += partials[warp];
        __syncthreads();
        return sum;
    }

    /// The sum over rows of a value that all threads of a row have.
    __device__ float sum_rows(float value) { return sum_block(part == 0 ? value : 0.0f); }

    /// This row of the matrix times the vector whose value of this row is `value`.
    __device__ float multiply(float value) {
        if (part == 0) vector[row] = value;
        __syncthreads();
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) sum += matrix[i] * vector[(i / 4 * kShare + part) * 4 + i % 4];
        __syncthreads();
        return sum_lanes<kShare>(sum);
    }

    /// Fills the matrix, `C + lam I`, from the splits.
    __device__ void load(float top, float omega, float ridge) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) matrix[i] = 0.0f;
#pragma unroll 1
        for (uint32_t split = 0; split < params.num_splits; ++split) {
            const float* from = record(split);
            const float *scalars = from + D * D + D, weight = scalars[1];
            if (weight == 0.0f) continue;
            const float factor = weight_of(scalars[0], top), away = from[D * D + row] / weight - mean[row];
            // How far the mean of the split is from that of all.
            __syncthreads();
            if (part == 0) vector[row] = away;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < kOwn / 4; ++i) {
                const int column = (kShare * i + part) * 4;
                // Below the diagonal blocks the matrix is what lies above, transposed.
                const bool below = column / 16 < row / 16;
                const float* at = below ? from + column * D + row : from + row * D + column;
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    matrix[4 * i + e] += factor * (at[below ? e * D : e] + weight * away * vector[column + e]);
                }
                // Keeps the compiler from loading everything first, for which there are no registers.
                __syncwarp();
            }
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int column = (i / 4 * kShare + part) * 4 + i % 4;
            matrix[i] /= omega;
            if (column == row) matrix[i] += ridge;
        }
        __syncthreads();
    }

    /// This row of the solution of `matrix x = right`, by conjugate gradients with restarts from the true residual.
    __device__ float solve(float right) {
        float x = 0.0f, residual = right, squares = sum_rows(right * right);
        uint32_t steps = 0;
        bool capped = params.max_steps == 0 && squares > 0.0f;
        for (uint32_t round = 0; round < params.num_rounds && params.max_steps > 0; ++round) {
            if (round > 0) {
                residual = right - multiply(x);
                squares = sum_rows(residual * residual);
            }
            // Below this, relative to the right side of norm one, f32 has nothing more to give.
            if (!(squares > 1e-14f) || !is_finite(squares)) break;
            const float enough = fmaxf(params.tolerance * params.tolerance * squares, kLeastSquares);
            float direction = residual;
            for (uint32_t step = 0;; ++step) {
                if (step == params.max_steps) {
                    capped = true;
                    break;
                }
                const float image = multiply(direction), curvature = sum_rows(direction * image);
                if (!(curvature > 0.0f)) break;
                const float alpha = squares / curvature;
                x += alpha * direction;
                residual -= alpha * image;
                const float next = sum_rows(residual * residual);
                ++steps;
                if (!(next > enough)) break;
                direction = residual + next / squares * direction;
                squares = next;
            }
        }
        if (threadIdx.x == 0) {
            atomicAdd(&params.counters->iterations, static_cast<unsigned long long>(steps));
            atomicMax(&params.counters->largest_iterations, steps);
            if (capped) atomicAdd(&params.counters->capped, 1u);
        }
        return x;
    }

    __device__ void run() {
        const bool column = row < int(params.key_dim);
        float top = -INFINITY, omega = 0.0f, mean_sum = 0.0f;
        for (uint32_t split = 0; split < params.num_splits; ++split) {
            const float* scalars = record(split) + D * D + D;
            if (scalars[1] != 0.0f) top = fmaxf(top, scalars[0]);
        }
        for (uint32_t split = 0; split < params.num_splits; ++split) {
            const float *key_sums = record(split) + D * D, *scalars = key_sums + D, weight = scalars[1];
            if (weight == 0.0f) continue;
            const float factor = weight_of(scalars[0], top);
            omega += weight * factor;
            mean_sum += key_sums[row] * factor;
        }
        const float own_mean = omega != 0.0f ? mean_sum / omega : 0.0f;
        if (part == 0) mean[row] = own_mean;
        __syncthreads();

        float x = 0.0f;
        if (params.probe) {
            if (column) x = load_element(params.probe, uint64_t(blockIdx.x) * params.key_dim + row, params.type);
        } else if (omega != 0.0f) {
            const float query =
                column ? load_element(params.q, uint64_t(blockIdx.x) * params.key_dim + row, params.type) : 0.0f;
            const float delta = own_mean - query, norm = sqrtf(sum_rows(delta * delta));
            load(top, omega, ridge_of(params, blockIdx.x / params.num_heads, blockIdx.x % params.num_heads));
            x = solve(norm > 0.0f ? delta / norm : 0.0f) * norm;
        }
        // One value that is not finite makes the sum so.
        const bool fallback = !is_finite(sum_rows(x));
        if (fallback) x = 0.0f;
        const float bias = sum_rows(x * own_mean);
        float* solution = params.solutions + uint64_t(blockIdx.x) * solution_len(D);
        if (part == 0) solution[row] = x;
        if (threadIdx.x == 0) {
            solution[D] = bias;
            solution[D + 1] = top;
            solution[D + 2] = omega;
            solution[D + 3] = fallback ? 1.0f : 0.0f;
        }
    }
};

inline __device__ void output_decode(const LlaParams& params) {
    const int dim = padded_dim(params), tid = threadIdx.x, lane = tid % kLanes, quad = tid % 4;
    float* query = reinterpret_cast<float*>(shared_memory());
    float *probe = query + dim, *weights = probe + dim, *slopes = weights + kSplitLen;
    int* slots = reinterpret_cast<int*>(slopes + kSplitLen);
    float* sums = reinterpret_cast<float*>(slots + kSplitLen);

    const Split split(params);
    const int count = int(split.end - split.start);
    float* record = params.records + (uint64_t(blockIdx.x) * params.num_splits + blockIdx.y) * record_len(dim);
    const float* solution = params.solutions + uint64_t(blockIdx.x) * solution_len(dim);
    const float bias = solution[dim], top = solution[dim + 1];
    for (int d = tid; d < dim; d += kOutputThreads) {
        query[d] = d < int(params.key_dim)
                       ? load_element(params.q, uint64_t(blockIdx.x) * params.key_dim + d, params.type)
                       : 0.0f;
        probe[d] = solution[d];
    }
    for (int i = tid; i < count; i += kOutputThreads) slots[i] = split.slot(params, split.start + uint32_t(i));
    __syncthreads();

    // Four lanes a position. Every position here is seen by the query, so nothing needs to be kept from it.
    for (int first = 0; first < count; first += kOutputThreads / 4) {
        const int i = first + tid / 4;
        float score = 0.0f, slope = 0.0f;
        for (int column = quad * 8; column < dim; column += 32) {
            float key[8];
            load_eight(key, params.keys, uint64_t(slots[min(i, count - 1)]), column, int(params.key_dim), params.type);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                score += query[column + e] * key[e];
                slope += probe[column + e] * key[e];
            }
        }
        score = sum_lanes<4>(score) * params.scale_log2;
        slope = sum_lanes<4>(slope) - bias;
        if (quad == 0 && i < count) {
            weights[i] = weight_of(score, top);
            slopes[i] = weights[i] * slope;
        }
    }
    __syncthreads();

    float slope_sum = 0.0f;
    for (int i = lane; i < count; i += kLanes) slope_sum += slopes[i];
    slope_sum = sum_lanes<kLanes>(slope_sum);
    if (tid == 0) record[2 * dim] = slope_sum;

    const int chunks = dim / 8, groups = kOutputThreads / chunks, column = tid % chunks * 8, group = tid / chunks;
    if (group < groups) {
        float value_sums[8] = {}, slope_sums[8] = {};
        for (int i = group; i < count; i += groups) {
            float value[8];
            load_eight(value, params.values, uint64_t(slots[i]), column, int(params.value_dim), params.type);
            const float weight = weights[i], slope = slopes[i];
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                value_sums[e] += weight * value[e];
                slope_sums[e] += slope * value[e];
            }
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            sums[group * 2 * dim + column + e] = value_sums[e];
            sums[group * 2 * dim + dim + column + e] = slope_sums[e];
        }
    }
    __syncthreads();
    for (int d = tid; d < 2 * dim; d += kOutputThreads) {
        float sum = 0.0f;
        for (int g = 0; g < groups; ++g) sum += sums[g * 2 * dim + d];
        record[d] = sum;
    }
}

inline __device__ void merge_decode(const LlaParams& params) {
    const int dim = padded_dim(params), tid = threadIdx.x;
    const float* solution = params.solutions + uint64_t(blockIdx.x) * solution_len(dim);
    const float omega = solution[dim + 2];
    float values = 0.0f, sloped = 0.0f, slopes = 0.0f;
    if (tid < dim) {
        for (uint32_t split = 0; split < params.num_splits; ++split) {
            const float* record = params.records + (uint64_t(blockIdx.x) * params.num_splits + split) * record_len(dim);
            values += record[tid];
            sloped += record[dim + tid];
            slopes += record[2 * dim];
        }
    }
    const float mean = omega != 0.0f ? values / omega : 0.0f;
    const float slope = omega != 0.0f ? (sloped - slopes * mean) / omega : 0.0f;
    const bool fallback = __syncthreads_or(!is_finite(mean - slope)) || solution[dim + 3] != 0.0f;
    const uint32_t row = blockIdx.x / params.num_heads, head = blockIdx.x % params.num_heads;
    if (tid < int(params.value_dim)) {
        const uint64_t at = output_place(params, row, head, tid);
        store_element(params.output, at, params.type, fallback ? mean : mean - slope);
    }
    if (head + 1 == params.num_heads) pad_output(params, row, uint32_t(tid), kMergeThreads);
    if (fallback && tid == 0) atomicAdd(&params.counters->fallbacks, 1u);
}
