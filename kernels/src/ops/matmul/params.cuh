// What the kernels of the matrix product are told; mirrored by `launch.rs`. All pointers are device memory.
#pragma once

#include "../../cuh/element.cuh"

/// Weights that one launch can take side by side.
constexpr int kMostParts = 4;

/// One weight of a launch, in the layout of `weight.cuh`.
struct MatmulPart {
    const void* codes;
    /// Null for dense weights
    const void* scales;
    uint32_t out_features;
    /// Its tiles of 128 outputs, counted through all parts of the launch
    uint32_t first_tile, end_tile;
    /// Where its outputs stand in a row of the result
    uint32_t first_output;
};

struct MatmulParams {
    MatmulPart parts[kMostParts];
    /// [rows, stride], 16-bit; zeros past the input width of the weights
    const uint16_t* xs;
    /// [splits, rows, out_features], or [rows, out_features] if the grid has one block along y
    float* out;
    uint32_t rows, stride, out_features, num_parts;
    /// Steps along k of the whole weight, and tiles of rows
    uint32_t num_stages, num_row_tiles;
    /// Steps that shared memory holds: `MatmulLayout::kRing`, or 2 where copies are not asynchronous
    uint32_t ring_len;
    /// At most as many as there are stages
    uint32_t num_splits;
};

struct EmbedParams {
    const void* codes;
    const void* scales;
    /// [rows]
    const uint32_t* ids;
    /// [rows, in_features]
    float* out;
    uint32_t rows, in_features, out_features, padded_in;
};

struct RandomParams {
    void* codes;
    void* scales;
    uint32_t out_features, in_features, padded_in, seed;
    /// Of a value for dense weights, of a scale for coded ones
    float spread;
    uint32_t padding;
};

static_assert(sizeof(MatmulPart) == 32, "mirrored in launch.rs");
static_assert(sizeof(MatmulParams) == kMostParts * 32 + 2 * 8 + 8 * 4, "mirrored in launch.rs");
static_assert(sizeof(EmbedParams) == 4 * 8 + 4 * 4 && sizeof(RandomParams) == 2 * 8 + 6 * 4, "mirrored in launch.rs");
