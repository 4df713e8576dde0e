// One block of local linear attention over many rows: a tile of queries against all keys that they see.
//
// The block holds the systems of its queries in shared memory in f32 and streams keys, and at the end values, past them.
// A pass over the keys is one routine with the same product of queries and keys in it; what a pass weighs and what it
// sums depends on what it is for (`Pass`). Warps share a tile of keys among them, so that 16 queries keep four warps
// busy: the systems of 16 queries in 128 dimensions fit into the shared memory of every architecture, those of 64 into
// few. Each warp sums over its own keys and the sums meet at the end of a pass, in a fixed order.
#pragma once

#include "arithmetic.cuh"

/// Warps that share the keys of a tile for the same 16 queries.
constexpr int kKeyWarps = 4;
/// Lanes that share a query between passes.
constexpr int kRowLanes = 8;

template <class Math, int D>
struct PrefillLayout {
    /// Queries of a block; mirrored in `device.rs`. Both arithmetics have the same, because they share tiles and marks.
    static constexpr int kRows = D <= 64 ? 32 : 16;
    static constexpr int kThreads = kRows * kRowLanes;
    static constexpr int kTileKeys = kKeyWarps * Math::kWarpKeys;
    /// Floats from one row of a system to the next.
    static constexpr int kStride = D + 4;
    static constexpr int kSystem = kRows * kStride * int(sizeof(float));
    static constexpr int kOperand = kRows * Math::stride(D) * int(sizeof(typename Math::Cell));
    static constexpr int kTile = kTileKeys * Math::stride(D) * int(sizeof(typename Math::Cell));
    static constexpr int kScalars = kRows * 4;
    // Four vectors for each system; the queries; the left operand, which `Full` takes from the systems; the tile, whose
    // place also holds the sums of a pass; sums or maxima by warp; largest score, bias and range of each row.
    static constexpr int kOperands = 4 * kSystem;
    static constexpr int kTiles = kOperands + kOperand * (Math::kChecksRange ? 3 : 1);
    static constexpr int kSmall = kTiles + kTile;
    static constexpr int kBytes = kSmall + (kKeyWarps + 4) * kScalars + kTileKeys * 4 + 16 + kTileKeys;

    static_assert(kTile >= kSystem, "the sums of a pass lie where its last tile lay");
    static_assert(kBytes <= 64 * 1024, "the shared memory of sm_75");
};

/// What a pass over the keys is for.
enum class Pass {
    /// Largest score, sum of weights and of weighted keys.
    Keys,
    /// A step of the solver: weighted products of the direction with the keys, times the keys.
    Step,
    /// The same for the probe, with split operands.
    Residual,
    /// Sum of weighted values.
    Values,
    /// Weighted products of the probe with the keys, times the values.
    Output,
};

template <class Math, int D>
struct Prefill {
    using Layout = PrefillLayout<Math, D>;
    using Cell = typename Math::Cell;
    static constexpr int kRows = Layout::kRows;
    static constexpr int kStride = Layout::kStride;
    static constexpr int kWarpTiles = Math::kWarpKeys / 8;

    const LlaParams& params;
    LlaTile tile;
    uint32_t kv_head, group_size;
    /// [rows, kStride]: `x`, `r`, `p`, `kbar`. The mean of the values takes the place of `r` in the end.
    float *probe, *residual, *direction, *mean;
    /// [rows, Math::stride(D)]; the left operand is a high and a low part for `Half`.
    Cell *queries, *left;
    Cell* keys;
    /// [rows, kStride], where the tile lies between passes.
    float* image;
    /// [kKeyWarps, rows]
    float* partials;
    /// [rows]
    float *largest, *bias;
    uint32_t *starts, *ends;
    int* slots;
    int* peak_bits;
    uint8_t* poisoned;

    // Of the query that this thread has a share of between passes: row `row`, columns `part + 8 i`.
    int row, part;
    bool valid, running, capped, fallback;
    uint32_t steps, round_steps;
    /// Sum of the weights; norm of the right side; norm of what the left operand is of unit norm for; `<r, r>` now and at
    /// the start of the round; ridge.
    float omega, norm, left_norm, squares, first_squares, ridge;

    __device__ explicit Prefill(const LlaParams& params) : params(params) {
        unsigned char* shared = shared_memory();
        probe = reinterpret_cast<float*>(shared);
        residual = probe + kRows * kStride;
        direction = residual + kRows * kStride;
        mean = direction + kRows * kStride;
        queries = reinterpret_cast<Cell*>(shared + Layout::kOperands);
        left = queries + kRows * Math::stride(D);
        keys = reinterpret_cast<Cell*>(shared + Layout::kTiles);
        image = reinterpret_cast<float*>(keys);
        partials = reinterpret_cast<float*>(shared + Layout::kSmall);
        largest = partials + kKeyWarps * kRows;
        bias = largest + kRows;
        starts = reinterpret_cast<uint32_t*>(bias + kRows);
        ends = starts + kRows;
        slots = reinterpret_cast<int*>(ends + kRows);
        peak_bits = slots + Layout::kTileKeys;
        poisoned = reinterpret_cast<uint8_t*>(peak_bits + 4);
        tile = params.tiles[blockIdx.x / params.num_kv_heads];
        kv_head = blockIdx.x % params.num_kv_heads;
        group_size = params.num_heads / params.num_kv_heads;
        row = int(threadIdx.x) / kRowLanes;
        part = int(threadIdx.x) % kRowLanes;
        valid = uint32_t(row) < tile.num_queries;
        running = capped = fallback = false;
        steps = round_steps = 0;
        omega = norm = left_norm = squares = first_squares = 0.0f;
        ridge = valid && params.ridge ? ridge_of(params, packed_row(), head()) : 0.0f;
    }

    __device__ uint32_t packed_row() const { return (tile.first_query + uint32_t(row)) / group_size; }
    __device__ uint32_t head() const { return kv_head * group_size + (tile.first_query + uint32_t(row)) % group_size; }
    /// Where the query of this thread lies in [rows, heads].
    __device__ uint64_t place() const { return uint64_t(packed_row()) * params.num_heads + head(); }

    __device__ float query(int d) const {
        return valid && d < int(params.key_dim) ? load_element(params.q, place() * params.key_dim + d, params.type) : 0.0f;
    }

    /// Calls `body` with each column of this thread's share of a row, and where it lies in a system.
    template <class Body>
    __device__ void each(Body body) const {
#pragma unroll 4
        for (int d = part; d < D; d += kRowLanes) body(d, row * kStride + d);
    }

    /// Puts the queries and what they see into shared memory. Returns false if fp16 cannot hold them.
    __device__ bool load_queries() {
        float peak = 0.0f;
        each([&](int d, int) {
            const float value = query(d);
            peak = fmaxf(peak, fabsf(value));
            store_cell(queries[row * Math::stride(D) + d], value);
        });
        if (part == 0) {
            const LlaVisible seen = valid ? params.visible[packed_row()] : LlaVisible{0, 0, 0};
            starts[row] = seen.start;
            ends[row] = seen.end;
            largest[row] = 0.0f;
            bias[row] = 0.0f;
        }
        if (threadIdx.x == 0) *peak_bits = 0;
        // Scores of tiny queries are tiny whatever bits they lose.
        return !Math::kChecksRange || !__syncthreads_or(peak > kLargestHalf && is_finite(peak));
    }

    static __device__ void store_cell(uint16_t& cell, float value) { cell = to_half(value); }
    static __device__ void store_cell(float& cell, float value) { cell = value; }

    /// Whether fp16 holds what the threads loaded since the start or the last call.
    __device__ bool in_range(float peak, float limit) {
        // Magnitudes order like their bits.
        atomicMax(peak_bits, __float_as_int(peak));
        __syncthreads();
        const float all = __int_as_float(*peak_bits);
        __syncthreads();
        if (threadIdx.x == 0) *peak_bits = 0;
        return fits_half(all, limit, params.type);
    }

    /// One pass: `image` gets the sums over positions of the factors times keys or values, `partials` the sums of the
    /// factors. Returns the largest magnitude that this thread loaded of what is summed.
    __device__ float stream(Pass pass) {
        const bool centred = pass == Pass::Step || pass == Pass::Residual || pass == Pass::Output;
        const bool of_values = pass == Pass::Values || pass == Pass::Output;
        const bool split = pass != Pass::Step;
        const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
        const int key_warp = warp % kKeyWarps, first_row = warp / kKeyWarps * 16, quad = lane % 4;
        const int rows[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
        const Cell* left_rows = operand(pass) + first_row * Math::stride(D);
        const Cell* own_keys = keys + key_warp * Math::kWarpKeys * Math::stride(D);

        float sums[D / 8][4] = {}, totals[2] = {0.0f, 0.0f}, tops[2], peak = 0.0f;
        for (int i = 0; i < 2; ++i) tops[i] = pass == Pass::Keys ? -INFINITY : largest[rows[i]];
        for (uint32_t first = tile.visible.start; first < tile.visible.end; first += Layout::kTileKeys) {
            __syncthreads();
            if (threadIdx.x < Layout::kTileKeys) {
                const uint32_t position = first + threadIdx.x;
                slots[threadIdx.x] =
                    position < tile.visible.end ? slot_of(params, tile.visible.table, position, kv_head) : -1;
                poisoned[threadIdx.x] = 0;
            }
            __syncthreads();
            const float key_peak = load_tile<Math, D>(keys, poisoned, params.keys, slots, Layout::kTileKeys,
                                                      int(params.key_dim), params.type);
            if (!of_values) peak = fmaxf(peak, key_peak);
            __syncthreads();

            float factors[kWarpTiles][4] = {};
            Math::template project<D>(factors, queries + first_row * Math::stride(D), own_keys);
            uint32_t seen = 0;
            const uint32_t own = first + key_warp * Math::kWarpKeys + 2 * quad;
#pragma unroll
            for (int i = 0; i < kWarpTiles * 4; ++i) {
                const uint32_t position = own + i / 4 * 8 + i % 2, r = i % 4 / 2;
                if (position >= starts[rows[r]] && position < ends[rows[r]]) seen |= 1u << i;
                factors[i / 4][i % 4] *= params.scale_log2;
            }
            if (pass == Pass::Keys) rescale(sums, totals, tops, factors, seen);
#pragma unroll
            for (int i = 0; i < kWarpTiles * 4; ++i) {
                factors[i / 4][i % 4] = seen >> i & 1 ? weight_of(factors[i / 4][i % 4], tops[i % 4 / 2]) : 0.0f;
            }
            if (centred) {
                float products[kWarpTiles][4] = {};
                Math::template project<D>(products, left_rows, own_keys);
                if (Math::kChecksRange && split) {
                    Math::template project<D>(products, left_rows + kRows * Math::stride(D), own_keys);
                }
#pragma unroll
                for (int i = 0; i < kWarpTiles * 4; ++i) {
                    // Centred before it is rounded.
                    factors[i / 4][i % 4] *= products[i / 4][i % 4] - bias[rows[i % 4 / 2]];
                }
            }
            if (of_values) {
                __syncthreads();
                peak = fmaxf(peak, load_tile<Math, D>(keys, poisoned, params.values, slots, Layout::kTileKeys,
                                                      int(params.value_dim), params.type));
                __syncthreads();
            }
#pragma unroll
            for (int i = 0; i < kWarpTiles * 4; ++i) {
                const int key = key_warp * Math::kWarpKeys + i / 4 * 8 + 2 * quad + i % 2;
                if (!(seen >> i & 1)) factors[i / 4][i % 4] = 0.0f;
                else if (poisoned[key]) factors[i / 4][i % 4] = NAN;
            }
            Math::template gather<D>(sums, totals, factors, own_keys, split);
        }
        combine(pass, sums, totals, tops, rows, key_warp);
        return peak;
    }

    /// Takes the scores of a tile into the largest of each row, and scales what was summed under the old one.
    static __device__ void rescale(float (&sums)[D / 8][4], float (&totals)[2], float (&tops)[2],
                                   const float (&scores)[kWarpTiles][4], uint32_t seen) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = tops[r];
#pragma unroll
            for (int i = 0; i < kWarpTiles * 4; ++i) {
                if (i % 4 / 2 == r && seen >> i & 1) top = fmaxf(top, scores[i / 4][i % 4]);
            }
            top = max_lanes<4>(top);
            const float factor = top == tops[r] ? 1.0f : weight_of(tops[r], top);
            tops[r] = top;
            totals[r] *= factor;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                sums[n][2 * r] *= factor;
                sums[n][2 * r + 1] *= factor;
            }
        }
    }

    /// Adds up what the warps found.
    __device__ void combine(Pass pass, float (&sums)[D / 8][4], float (&totals)[2], const float (&tops)[2],
                            const int (&rows)[2], int key_warp) {
        const int quad = threadIdx.x % 4;
        float factors[2] = {1.0f, 1.0f};
        // The tile is no longer read after this.
        __syncthreads();
        if (pass == Pass::Keys) {
            for (int r = 0; r < 2; ++r) {
                if (quad == 0) partials[key_warp * kRows + rows[r]] = tops[r];
            }
            __syncthreads();
            for (int r = 0; r < 2; ++r) {
                float top = -INFINITY;
                for (int w = 0; w < kKeyWarps; ++w) top = fmaxf(top, partials[w * kRows + rows[r]]);
                factors[r] = tops[r] == top ? 1.0f : weight_of(tops[r], top);
                if (quad == 0 && key_warp == 0) largest[rows[r]] = top;
            }
            __syncthreads();
        }
        for (int r = 0; r < 2; ++r) {
            const float total = sum_lanes<4>(totals[r]) * factors[r];
            if (quad == 0) partials[key_warp * kRows + rows[r]] = total;
        }
        for (int w = 0; w < kKeyWarps; ++w) {
            if (w == key_warp) {
#pragma unroll
                for (int i = 0; i < D / 8 * 4; ++i) {
                    const int r = i % 4 / 2;
                    float* to = image + rows[r] * kStride + i / 4 * 8 + 2 * quad + i % 2;
                    const float value = sums[i / 4][i % 4] * factors[r];
                    *to = w == 0 ? value : *to + value;
                }
            }
            __syncthreads();
        }
    }

    /// The left operand of a pass.
    __device__ const Cell* operand(Pass pass) const {
        if constexpr (Math::kChecksRange) {
            return left;
        } else {
            return pass == Pass::Step ? direction : probe;
        }
    }

    /// The sum of the factors of this thread's row.
    __device__ float total() const {
        float sum = 0.0f;
        for (int w = 0; w < kKeyWarps; ++w) sum += partials[w * kRows + row];
        return sum;
    }

    /// Makes `vector` the left operand of the next pass, at unit norm for `Half`; zeros unless `wanted`.
    __device__ void set_left(const float* vector, bool wanted) {
        float sum = 0.0f;
        if constexpr (Math::kChecksRange) {
            each([&](int, int at) { sum += vector[at] * vector[at]; });
            sum = sum_lanes<kRowLanes>(sum);
            left_norm = wanted ? sqrtf(sum) : 0.0f;
            const float factor = wanted && sum > 0.0f ? 1.0f / left_norm : 0.0f;
            sum = 0.0f;
            each([&](int d, int at) {
                const float value = wanted ? vector[at] * factor : 0.0f;
                const Cell high = to_half(value), low = to_half(value - from_half(high));
                Cell* to = left + row * Math::stride(D) + d;
                to[0] = high;
                to[kRows * Math::stride(D)] = low;
                // A step multiplies the high part alone, and the mean must meet what the keys meet.
                sum += (from_half(high) + (vector == direction ? 0.0f : from_half(low))) * mean[at];
            });
        } else {
            left_norm = 1.0f;
            each([&](int, int at) { sum += vector[at] * mean[at]; });
        }
        sum = sum_lanes<kRowLanes>(sum);
        if (part == 0) bias[row] = sum;
    }

    /// A value of `C v` for the vector `v` that was the left operand of the last pass.
    __device__ float product(int at, float total) const { return left_norm * (image[at] - total * mean[at]) / omega; }

    /// After the keys: `kbar`, and the systems at their start.
    __device__ void start() {
        omega = total();
        float sum = 0.0f;
        each([&](int d, int at) {
            mean[at] = omega != 0.0f ? image[at] / omega : 0.0f;
            const float value = omega != 0.0f ? mean[at] - query(d) : 0.0f;
            residual[at] = value;
            sum += value * value;
        });
        norm = sqrtf(sum_lanes<kRowLanes>(sum));
        sum = 0.0f;
        each([&](int, int at) {
            residual[at] = norm > 0.0f ? residual[at] / norm : 0.0f;
            direction[at] = residual[at];
            probe[at] = 0.0f;
            sum += residual[at] * residual[at];
        });
        squares = first_squares = sum_lanes<kRowLanes>(sum);
        running = squares > 0.0f && params.max_steps > 0;
        capped = squares > 0.0f && params.max_steps == 0;
        set_left(direction, running);
    }

    /// Takes probes that need no solving.
    __device__ void give() {
        omega = total();
        norm = 1.0f;
        each([&](int d, int at) {
            mean[at] = omega != 0.0f ? image[at] / omega : 0.0f;
            probe[at] = valid && omega != 0.0f && d < int(params.key_dim)
                            ? load_element(params.probe, place() * params.key_dim + d, params.type)
                            : 0.0f;
        });
    }

    /// One step of conjugate gradients. Lanes of rows that are not running come along and change nothing.
    __device__ void step() {
        const float sum_of_factors = total();
        float sum = 0.0f;
        each([&](int, int at) {
            if (!running) return;
            image[at] = product(at, sum_of_factors) + ridge * direction[at];
            sum += direction[at] * image[at];
        });
        const float curvature = sum_lanes<kRowLanes>(sum);
        // Rounding may have made the direction useless.
        running = running && curvature > 0.0f;
        const float alpha = squares / curvature;
        sum = 0.0f;
        each([&](int, int at) {
            if (!running) return;
            probe[at] += alpha * direction[at];
            residual[at] -= alpha * image[at];
            sum += residual[at] * residual[at];
        });
        sum = sum_lanes<kRowLanes>(sum);
        if (running) {
            ++steps;
            ++round_steps;
            const float beta = sum / squares;
            squares = sum;
            each([&](int, int at) { direction[at] = residual[at] + beta * direction[at]; });
            const float enough = params.tolerance * params.tolerance * first_squares;
            const bool wanting = sum > fmaxf(enough, kLeastSquares);
            running = wanting && round_steps < params.max_steps;
            capped = capped || (wanting && !running);
        }
        set_left(direction, running);
    }

    /// The true residual, and another round from it.
    __device__ void restart() {
        const float sum_of_factors = total();
        float sum = 0.0f;
        each([&](int d, int at) {
            const float right = norm > 0.0f ? (mean[at] - query(d)) / norm : 0.0f;
            const float value = omega != 0.0f ? right - product(at, sum_of_factors) - ridge * probe[at] : 0.0f;
            residual[at] = value;
            direction[at] = value;
            sum += value * value;
        });
        squares = first_squares = sum_lanes<kRowLanes>(sum);
        // Below this, relative to the right side, f32 has nothing more to give.
        running = squares > 1e-14f && is_finite(squares);
        round_steps = 0;
        set_left(direction, running);
    }

    /// After the values: their mean, and the probe as left operand.
    __device__ void finish() {
        float sum = 0.0f;
        each([&](int, int at) {
            residual[at] = omega != 0.0f ? image[at] / omega : 0.0f;
            sum += probe[at] * norm;
        });
        // One value that is not finite makes the sum so; a sum that overflows would not help the output either.
        fallback = !is_finite(sum_lanes<kRowLanes>(sum));
        if (fallback) each([&](int, int at) { probe[at] = 0.0f; });
        set_left(probe, !fallback);
    }

    /// The output of softmax attention less that of the slope.
    __device__ void write() {
        const float sum_of_factors = total(), factor = omega != 0.0f && !fallback ? left_norm * norm / omega : 0.0f;
        float sum = 0.0f;
        each([&](int, int at) {
            image[at] = factor * (image[at] - sum_of_factors * residual[at]);
            sum += fabsf(residual[at] - image[at]);
        });
        const bool overflow = !is_finite(sum_lanes<kRowLanes>(sum));
        fallback = fallback || overflow;
        if (!valid) return;
        each([&](int d, int at) {
            if (d >= int(params.value_dim)) return;
            const float value = fallback ? residual[at] : residual[at] - image[at];
            store_element(params.output, output_place(params, packed_row(), head(), d), params.type, value);
        });
        if (head() + 1 == params.num_heads) pad_output(params, packed_row(), uint32_t(part), kRowLanes);
        if (part != 0) return;
        atomicAdd(&params.counters->iterations, static_cast<unsigned long long>(steps));
        atomicMax(&params.counters->largest_iterations, steps);
        if (fallback) atomicAdd(&params.counters->fallbacks, 1u);
        if (capped) atomicAdd(&params.counters->capped, 1u);
    }

    __device__ void run() {
        uint32_t* mark = params.marks ? params.marks + blockIdx.x : nullptr;
        if (params.only_marked && *mark == 0) return;
        if (threadIdx.x == 0 && params.only_marked) atomicAdd(&params.counters->wide, 1u);
        bool fits = load_queries();
        uint32_t round = 1;
        for (Pass pass = Pass::Keys; fits;) {
            const float peak = stream(pass);
            if (Math::kChecksRange && pass == Pass::Keys) fits = in_range(peak, kLargestHalfKey);
            if (Math::kChecksRange && pass == Pass::Values) fits = in_range(peak, kLargestHalf);
            switch (pass) {
                case Pass::Keys:
                    if (params.probe) {
                        give();
                        pass = Pass::Values;
                    } else {
                        start();
                        pass = __syncthreads_or(running) ? Pass::Step : Pass::Values;
                    }
                    break;
                case Pass::Step:
                    step();
                    if (!__syncthreads_or(running)) {
                        pass = round < params.num_rounds ? Pass::Residual : Pass::Values;
                        if (pass == Pass::Residual) set_left(probe, true);
                        ++round;
                    }
                    break;
                case Pass::Residual:
                    restart();
                    pass = __syncthreads_or(running) ? Pass::Step : Pass::Values;
                    break;
                case Pass::Values:
                    finish();
                    pass = Pass::Output;
                    break;
                case Pass::Output:
                    write();
                    if (Math::kChecksRange && mark && threadIdx.x == 0) *mark = 0;
                    return;
            }
        }
        // The other arithmetic takes this tile.
        if (mark && threadIdx.x == 0) *mark = 1;
    }
};
