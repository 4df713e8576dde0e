// Y = X W^T, bound by the bytes of W for few rows.
//
// One kernel in five widths: a block makes 128 outputs of 8, 16, 32, 64 or 128 rows over one split of k. Weights are the
// `A` operand of the matrix step, so 8 rows are enough to fill it, and rows the `B` operand. A warp makes 32 outputs of up
// to 64 rows; four warps stand side by side along the outputs and, with 128 rows, two along the rows.
//
// *Order of sums.* An output is a sum over splits, which the next kernel adds; within a split over chunks of 32 k, two
// matrix steps each, in ascending order. That is so in all widths, the splits depend on the weight alone, and the columns
// of a matrix step do not see each other: a row has the same bits whatever rows it comes with.
//
// *Bytes in flight.* 4.8 TB/s over 132 multiprocessors are 36 bytes a nanosecond each, and a load takes most of a
// microsecond when the memory is busy: some 30 KiB must be on the way at any time, better 48. Registers of few warps do
// not hold that beside the sums of 64 rows. So copies go to a ring of stages in shared memory with `cp.async`, past the
// registers and the L1 cache. A stage holds 64 k of a dense weight (16 KiB), 64 of Q8_0 (8.5 KiB) or 128 of Q4_K (10 KiB),
// with the same k of the rows; a block takes as many as fit into 99 KiB, what the smallest architecture with such copies
// has, but at most eight. With one to 64 rows 64, 64, 48 and 48 KiB of a dense weight are on the way per block, of Q8_0
// 60, 60, 51 and 42, of Q4_K 70, 60, 40 and 20. Two blocks fit on a multiprocessor of sm_90.
//
// *Traffic of the rows.* Each block reads its rows itself, from the L2 cache: rows / 128 times the bytes of a dense
// weight, a quarter with 32 rows. From shared memory a warp reads 64 bytes of each of its 32 outputs and of each row per
// chunk of a dense weight; with the copies that fill it that is 32 + 4 rows bytes read and 64 written for 64 of 32
// outputs... see `MatmulLayout`. At 21 bytes of weights a clock and multiprocessor the sum is 64 bytes a clock with 32 rows
// and 85 with 64, of the 128 that shared memory gives.
//
// *Scales.* The codes of a group of 32 k are whole numbers in fp16, exact, as are their products with the activations in
// f32; a chunk is summed from zero and then added with the scale of its group in f32. The minima of Q4_K ask for the sum
// of the activations of a group, which two matrix steps with ones make in the very registers that need it; each warp does
// it for itself. With 64 rows Q4_K is bound by the matrix units.
#pragma once

#include "params.cuh"
#include "weight.cuh"

constexpr int kMostShared = 99 * 1024;
constexpr int kMostStages = 8;
constexpr int kOutputWarps = 4;

/// Sizes of a block. `kTiles` tiles of 8 rows for each of `kColumns` warps.
template <class Format, int kTiles, int kColumns>
struct MatmulLayout {
    static constexpr int kRows = 8 * kTiles * kColumns;
    static constexpr int kThreads = kLanes * kOutputWarps * kColumns;
    /// k of a stage, and its bytes: weights, scales, rows.
    static constexpr int kStageK = kStageChunks<Format> * kChunk;
    static constexpr int kCodeBytes = Format::kStageSlabs * kSlabBytes;
    static constexpr int kScaleBytes = Format::kRecord * kTileOutputs;
    static constexpr int kRowBytes = kRows * kStageK * 2;
    static constexpr int kStageBytes = kCodeBytes + kScaleBytes + kRowBytes;
    static constexpr int kFitting = kMostShared / kStageBytes;
    static constexpr int kRing = kFitting < kMostStages ? kFitting : kMostStages;
    static_assert(kRing >= 2 && kStageBytes % 16 == 0, "a stage is copied while another is read");
};

template <class Format, int kTiles, int kColumns>
class Matmul {
    using Layout = MatmulLayout<Format, kTiles, kColumns>;
    static constexpr int kOutputTiles = kTileOutputs / kOutputWarps / 16;

public:
    inline __device__ explicit Matmul(const MatmulParams& params) : params_(params) {
        const uint32_t tile = blockIdx.x / params.num_row_tiles;
        first_row_ = blockIdx.x % params.num_row_tiles * Layout::kRows;
        uint32_t part = 0;
        while (part + 1 < params.num_parts && tile >= params.parts[part].end_tile) ++part;
        const MatmulPart& weight = params.parts[part];
        const uint32_t own = tile - weight.first_tile;
        num_outputs_ = min(weight.out_features - own * kTileOutputs, uint32_t(kTileOutputs));
        first_output_ = weight.first_output + own * kTileOutputs;
        codes_ = static_cast<const unsigned char*>(weight.codes) + uint64_t(own) * params.num_stages * Layout::kCodeBytes;
        scales_ = static_cast<const unsigned char*>(weight.scales) +
                  uint64_t(own) * (params.num_stages / Format::kRecordStages) * Layout::kScaleBytes;
    }

    inline __device__ void run() {
        const uint32_t stages = params_.num_stages;
        const uint32_t start = uint32_t(uint64_t(blockIdx.y) * stages / gridDim.y);
        const uint32_t end = uint32_t(uint64_t(blockIdx.y + 1) * stages / gridDim.y);
        float sums[kOutputTiles][kTiles][4] = {};
        const uint32_t ahead = params_.ring_len - 1;
        uint32_t into = 0, from = 0;
        for (uint32_t stage = start; stage < start + ahead; ++stage) {
            if (stage < end) copy(stage, into);
            commit_copies();
            into += 1;
        }
        for (uint32_t stage = start; stage < end; ++stage) {
            wait_copies<Layout::kRing - 2>();
            // The copies of all threads are there, and all have read the stage that the next copies overwrite.
            __syncthreads();
            if (stage + ahead < end) copy(stage + ahead, into);
            commit_copies();
            multiply(sums, stage, from);
            into = into + 1 == params_.ring_len ? 0 : into + 1;
            from = from + 1 == params_.ring_len ? 0 : from + 1;
        }
        wait_copies<0>();
        store(sums);
    }

private:
    /// Starts the copies of a stage into place `slot` of the ring. What is past the last row or output becomes zero, and
    /// is not read.
    inline __device__ void copy(uint32_t stage, uint32_t slot) const {
        unsigned char* to = shared_memory() + slot * Layout::kStageBytes;
        const unsigned char* codes = codes_ + uint64_t(stage) * Layout::kCodeBytes;
#pragma unroll
        for (int first = 0; first < Layout::kCodeBytes / 16; first += Layout::kThreads) {
            const uint32_t piece = first + threadIdx.x, output = piece / (kSlabRow / 16) % kTileOutputs;
            copy_async(to + piece * 16, codes + piece * 16, output < num_outputs_);
        }
        to += Layout::kCodeBytes;
        if constexpr (Format::kCoded) {
            const unsigned char* scales = scales_ + uint64_t(stage / Format::kRecordStages) * Layout::kScaleBytes;
            for (uint32_t piece = threadIdx.x; piece < Layout::kScaleBytes / 16; piece += Layout::kThreads) {
                copy_async(to + piece * 16, scales + piece * 16, true);
            }
            to += Layout::kScaleBytes;
        }
        constexpr uint32_t row_pieces = Layout::kStageK / 8;
        for (uint32_t piece = threadIdx.x; piece < Layout::kRows * row_pieces; piece += Layout::kThreads) {
            const uint32_t row = piece / row_pieces, eighth = piece % row_pieces;
            const uint64_t first = uint64_t(first_row_ + row) * params_.stride + uint64_t(stage) * Layout::kStageK;
            copy_async(to + row_offset(row, eighth / 4, eighth % 4), params_.xs + first + eighth * 8,
                       first_row_ + row < params_.rows);
        }
    }

    /// Where k `8 quad .. 8 quad + 8` of a chunk of a row are. Rows of odd chunks change places in pairs, so that the
    /// copies of one row to two chunks meet different banks.
    static inline __device__ uint32_t row_offset(uint32_t row, uint32_t chunk, uint32_t quad) {
        return (chunk * Layout::kRows + (row ^ (chunk & 1u))) * 64 + quad * 16;
    }

    /// Adds the products of a stage.
    inline __device__ void multiply(float (&sums)[kOutputTiles][kTiles][4], uint32_t stage, uint32_t slot) const {
        const unsigned char* codes = shared_memory() + slot * Layout::kStageBytes;
        const unsigned char* scales = codes + Layout::kCodeBytes;
        const unsigned char* rows = scales + Layout::kScaleBytes;
        const uint32_t output = threadIdx.x / kLanes % kOutputWarps * (16 * kOutputTiles) + group();
        typename Format::Record records[kOutputTiles][2];
#pragma unroll
        for (int i = 0; i < 2 * kOutputTiles; ++i) {
            records[i / 2][i % 2] = Format::load_record(scales + (output + 8 * i) * Format::kRecord);
        }
#pragma unroll
        for (int slab = 0; slab < Format::kStageSlabs; ++slab) {
            uint4 pieces[kOutputTiles][2];
#pragma unroll
            for (int i = 0; i < 2 * kOutputTiles; ++i) {
                const uint32_t at = slab * kSlabBytes + (output + 8 * i) * kSlabRow + quad() * 16;
                pieces[i / 2][i % 2] = *reinterpret_cast<const uint4*>(codes + at);
            }
            // All four chunks of Q4_K at once would ask for more registers than there are.
            constexpr int side_by_side = Format::kHasMinima ? 1 : Format::kSlabChunks;
#pragma unroll side_by_side
            for (int chunk = 0; chunk < Format::kSlabChunks; ++chunk) {
                const int in_stage = slab * Format::kSlabChunks + chunk;
                const int in_record = stage % Format::kRecordStages * kStageChunks<Format> + in_stage;
                multiply_chunk(sums, pieces, records, chunk, in_record, rows, in_stage);
            }
        }
    }

    inline __device__ void multiply_chunk(float (&sums)[kOutputTiles][kTiles][4], const uint4 (&pieces)[kOutputTiles][2],
                                          const typename Format::Record (&records)[kOutputTiles][2], int chunk,
                                          int in_record, const unsigned char* rows, int in_stage) const {
        uint32_t a[kOutputTiles][2][4];
        Factor factors[kOutputTiles][2];
#pragma unroll
        for (int tile = 0; tile < kOutputTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t pairs[4];
                Format::decode(pairs, pieces[tile][half], chunk);
                factors[tile][half] = Format::factor(records[tile][half], in_record);
#pragma unroll
                for (int i = 0; i < 4; ++i) a[tile][i / 2][half + i % 2 * 2] = pairs[i];
            }
        }
        const uint32_t row = threadIdx.x / kLanes / kOutputWarps * (8 * kTiles) + group();
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            const uint4 x = *reinterpret_cast<const uint4*>(rows + row_offset(row + 8 * t, in_stage, quad()));
            float totals[4] = {};
            if constexpr (Format::kHasMinima) {
                const uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
                Format::multiply(totals, ones, x.x, x.y);
                Format::multiply(totals, ones, x.z, x.w);
            }
#pragma unroll
            for (int tile = 0; tile < kOutputTiles; ++tile) {
                if constexpr (Format::kCoded) {
                    float products[4] = {};
                    Format::multiply(products, a[tile][0], x.x, x.y);
                    Format::multiply(products, a[tile][1], x.z, x.w);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const Factor& factor = factors[tile][i / 2];
                        float& sum = sums[tile][t][i];
                        sum = fmaf(factor.scale, products[i], sum);
                        if constexpr (Format::kHasMinima) sum = fmaf(-factor.minimum, totals[i], sum);
                    }
                } else {
                    Format::multiply(sums[tile][t], a[tile][0], x.x, x.y);
                    Format::multiply(sums[tile][t], a[tile][1], x.z, x.w);
                }
            }
        }
    }

    inline __device__ void store(const float (&sums)[kOutputTiles][kTiles][4]) const {
        const uint32_t warp = threadIdx.x / kLanes;
        const uint32_t output = warp % kOutputWarps * (16 * kOutputTiles) + group();
        const uint32_t row = first_row_ + warp / kOutputWarps * (8 * kTiles) + 2 * quad();
#pragma unroll
        for (int tile = 0; tile < kOutputTiles; ++tile) {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint32_t to = output + 16 * tile + i / 2 * 8, to_row = row + 8 * t + i % 2;
                    if (to >= num_outputs_ || to_row >= params_.rows) continue;
                    const uint64_t out_row = uint64_t(blockIdx.y) * params_.rows + to_row;
                    params_.out[out_row * params_.out_features + first_output_ + to] = sums[tile][t][i];
                }
            }
        }
    }

    static inline __device__ uint32_t group() { return threadIdx.x % kLanes / 4; }
    static inline __device__ uint32_t quad() { return threadIdx.x % 4; }

    const MatmulParams& params_;
    const unsigned char* codes_;
    const unsigned char* scales_;
    uint32_t first_row_, num_outputs_, first_output_;
};

#define MATMUL(name, Format, tiles, columns)                                                                         \
    extern "C" __global__ void __launch_bounds__(MatmulLayout<Format, tiles, columns>::kThreads, 1) name(            \
        const __grid_constant__ MatmulParams params) {                                                               \
        Matmul<Format, tiles, columns>(params).run();                                                                \
    }
#define MATMUL_WIDTHS(format, Format)         \
    MATMUL(matmul_##format##_8, Format, 1, 1)   \
    MATMUL(matmul_##format##_16, Format, 2, 1)  \
    MATMUL(matmul_##format##_32, Format, 4, 1)  \
    MATMUL(matmul_##format##_64, Format, 8, 1)  \
    MATMUL(matmul_##format##_128, Format, 8, 2)
