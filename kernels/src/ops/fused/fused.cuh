// The bodies of the fused kernels.
#pragma once

#include "params.cuh"

constexpr int kNormThreads = 512;
constexpr int kNormBytes = kNormThreads / kLanes * 4;
constexpr int kQkvWarps = 4;
constexpr int kQkvThreads = kQkvWarps * kLanes;
/// The largest head.
constexpr int kMostFeatures = 256;
constexpr int kQkvBytes = kQkvWarps * kMostFeatures * 4;
constexpr int kSwigluThreads = 256;

/// Residual plus partial sums, normalised.
inline __device__ void normalise(const AddNormParams& params) {
    const uint32_t row = params.row_index ? params.row_index[blockIdx.x] : blockIdx.x;
    const uint64_t output = uint64_t(blockIdx.x) * params.padded;
    // An index that fills a batch.
    const bool absent = row >= params.num_rows;
    float* residual = params.residual + uint64_t(row) * params.hidden;
    float squares = 0.0f;
    for (uint32_t column = threadIdx.x * 4; column < params.hidden && !absent; column += kNormThreads * 4) {
        float4* at = reinterpret_cast<float4*>(residual + column);
        const float4 x = add_partials(*at, params.partials, row, column);
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        if (params.writes_residual) *at = x;
    }
    float* sums = reinterpret_cast<float*>(shared_memory());
    squares = sum_lanes<kLanes>(squares);
    if (threadIdx.x % kLanes == 0) sums[threadIdx.x / kLanes] = squares;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < kNormThreads / kLanes; ++warp) sum += sums[warp];
    const float factor = 1.0f / sqrtf(sum / float(params.hidden) + params.eps);
    for (uint32_t column = threadIdx.x * 4; column < params.padded; column += kNormThreads * 4) {
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
        if (column < params.hidden && !absent) {
            x = *reinterpret_cast<const float4*>(residual + column);
            if (!params.writes_residual) x = add_partials(x, params.partials, row, column);
            const float4 weight = *reinterpret_cast<const float4*>(params.weight + column);
            x = {x.x * factor * weight.x, x.y * factor * weight.y, x.z * factor * weight.z, x.w * factor * weight.w};
        }
        store_four(params.output, output + column, params.type, x);
    }
}

/// One head of a row in each warp.
inline __device__ void finish_qkv(const QkvFinishParams& params) {
    const bool held = plan_is_held(params.plan);
    const uint32_t lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, head_dim = params.head_dim;
    const uint32_t head = blockIdx.y * kQkvWarps + warp, num_heads = params.num_heads, num_kv_heads = params.num_kv_heads;
    if (head >= num_heads + 2 * num_kv_heads) return;
    const uint32_t index = blockIdx.x;
    const DeviceRow row = params.plan.rows[index];
    if (!held || row.visible_end == 0) return;
    const bool is_q = head < num_heads, is_value = head >= num_heads + num_kv_heads;

    float* features = reinterpret_cast<float*>(shared_memory()) + warp * kMostFeatures;
    float squares = 0.0f;
    for (uint32_t d = lane * 4; d < head_dim; d += kLanes * 4) {
        const float4 x = add_partials({0.0f, 0.0f, 0.0f, 0.0f}, params.partials, index, head * head_dim + d);
        *reinterpret_cast<float4*>(features + d) = x;
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    const float* weight = is_value ? nullptr : is_q ? params.q_weight : params.k_weight;
    squares = sum_lanes<kLanes>(squares);
    const float factor = 1.0f / sqrtf(squares / float(head_dim) + params.eps);
    __syncwarp();
    const auto feature = [&](uint32_t d) { return weight ? features[d] * factor * weight[d] : features[d]; };

    uint16_t* to;
    if (is_q) {
        to = static_cast<uint16_t*>(params.q) + (uint64_t(index) * num_heads + head) * head_dim;
    } else {
        const uint32_t kv_head = (head - num_heads) % num_kv_heads;
        const uint64_t slot = slot_of(params.plan, row.first_page, row.position, num_kv_heads, kv_head);
        to = static_cast<uint16_t*>(is_value ? params.values : params.keys) + slot * head_dim;
    }
    const uint32_t half = is_value ? 0 : params.half;
    const float* cos = params.cos + uint64_t(row.position) * params.half;
    const float* sin = params.sin + uint64_t(row.position) * params.half;
    // Lanes write pairs of neighbours, so that a store is a whole word.
    for (uint32_t d = lane * 2; d < head_dim; d += kLanes * 2) {
        uint32_t pair = 0;
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t at = d + i;
            float x = feature(at);
            if (at < half) {
                x = x * cos[at] - feature(at + half) * sin[at];
            } else if (at < 2 * half) {
                x = x * cos[at - half] + feature(at - half) * sin[at - half];
            }
            pair |= uint32_t(to_bits(x, params.type)) << (16 * i);
        }
        *reinterpret_cast<uint32_t*>(to + d) = pair;
    }
}

/// `gate / (1 + e^-gate) * up`
inline __device__ float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

inline __device__ void finish_swiglu(const SwigluFinishParams& params) {
    const uint32_t row = blockIdx.x, column = (blockIdx.y * kSwigluThreads + threadIdx.x) * 4;
    if (column >= params.padded) return;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (column < params.ffn) {
        const float4 gate = add_partials(x, params.partials, row, column);
        const float4 up = add_partials(x, params.partials, row, params.ffn + column);
        x = {gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w)};
    }
    store_four(params.output, uint64_t(row) * params.padded + column, params.type, x);
}
