// Y = X W^T, bound by the bytes of W for few rows. All numbers below are counted, none is measured.
//
// One kernel in five widths: a block makes 128 outputs of 8, 16, 32, 64 or 128 rows over one split of k. Weights are the
// `A` operand of the matrix step, so 8 rows are enough to fill it, and rows the `B` operand.
//
// *Order of sums.* An output is a sum over splits, which the next kernel adds; within a split over chunks of 32 k, two
// matrix steps each, in ascending order. That is so in all widths, the splits depend on the weight alone, and the columns
// of a matrix step do not see each other: a row has the same bits whatever rows it comes with.
//
// *Bytes in flight.* An H200 has 4.8 TB/s for 132 multiprocessors, 36 bytes a nanosecond each, and a load takes most of a
// microsecond when the memory is busy: some 30 KiB must be on the way at any time, better 48. The registers of a few warps
// do not hold that beside the sums of 64 rows. So copies go to a ring of stages in shared memory with `cp.async`, past the
// registers and the L1 cache. A stage holds 64 k of a dense weight (16 KiB), 64 of Q8_0 (8.5 KiB) or 128 of Q4_K (10 KiB),
// and the same k of the rows. A block takes as many stages as fit into 99 KiB, what the smallest architecture with such
// copies has, but at most eight; all but one are on the way. In KiB of weights:
//
//     rows      8    16    32    64   128
//     dense    64    64    48    48    32
//     Q8_0     60    60    51    42    26
//     Q4_K     60    50    40    20    10
//
// Two blocks of up to 64 rows fit on a multiprocessor of sm_90. Dense weights are split for one, quantised ones for two.
//
// *Waves.* A weight of 4096 x 4096 has 32 tiles of outputs: 4 splits make 128 blocks, for 97 % of the multiprocessors.
// 12288 x 4096 has 96, and 4 splits make 2.9 blocks for each; 128k x 4096 has 1002, 7.6 for each, without splits. A split
// costs 8 bytes for each row and output, written and read, mostly in the L2 cache: `DeviceLinear::num_splits` weighs that
// against multiprocessors that idle in the last wave. Where tiles of many rows fill the device, a block makes all splits of
// its outputs, one after the other, and adds them itself, in the order in which the reader would.
//
// *Traffic of the rows.* Each block reads its rows itself, from the L2 cache: rows / 128 times the bytes of a dense weight,
// a quarter with 32 rows. From shared memory a warp reads, for each chunk, its outputs and all its rows, 64 bytes each. So
// four warps of 32 outputs read 8 KiB of a dense weight and 8 KiB of 32 rows, and the copies wrote 8 + 2 KiB. The memory
// needs 380 clocks for the 8 KiB of weights: 70 bytes a clock of the 128 that shared memory has, 97 with 64 rows.
// With 128 rows eight warps stand in two columns, and a warp reads 6 KiB for 32 matrix steps of 32 outputs and 64 rows.
//
// *Quantised weights.* Codes are whole numbers in fp16, exact, and so are their products with the activations in f32; a
// chunk, which is a group of the format, is summed from zero and then added with its scale in f32. The minima of Q4_K ask
// for the sum of the activations of a group, which two matrix steps with ones make. Q4_K is bound by instructions rather
// than by memory: the memory needs 108 clocks for a chunk of 128 outputs. Hence factors and sums of activations are
// prepared once in a block, not by every warp; and up to 16 rows eight warps of 16 outputs work instead of four, two for
// each scheduler. With 32 rows the two multiply-adds of each output and row alone take 64 clocks, with 64 rows 128.
#pragma once

#include "params.cuh"
#include "weight.cuh"

constexpr int kMostShared = 99 * 1024;
constexpr int kMostStages = 8;

/// Sizes of a block. `kTiles` tiles of 8 rows for each of `kColumns` columns of warps.
template <class Format, int kTiles, int kColumns>
struct MatmulLayout {
    static constexpr int kRows = 8 * kTiles * kColumns;
    /// Warps that stand side by side along the outputs.
    static constexpr int kOutputWarps = Format::kCoded && kTiles <= 2 ? 8 : 4;
    static constexpr int kThreads = kLanes * kOutputWarps * kColumns;
    /// k of a stage, and its bytes: weights, scales, rows.
    static constexpr int kStageK = kStageChunks<Format> * kChunk;
    static constexpr int kCodeBytes = Format::kStageSlabs * kSlabBytes;
    static constexpr int kScaleBytes = Format::kRecord * kTileOutputs;
    static constexpr int kRowBytes = kRows * kStageK * 2;
    static constexpr int kStageBytes = kCodeBytes + kScaleBytes + kRowBytes;
    /// What is prepared of the stage at hand: factors [chunk, output] and sums of activations [chunk, row].
    static constexpr int kFactorBytes = Format::kHasMinima ? kStageChunks<Format> * kTileOutputs * 8 : 0;
    static constexpr int kTotalBytes = Format::kHasMinima ? kStageChunks<Format> * kRows * 4 : 0;
    static constexpr int kPreparedBytes = kFactorBytes + kTotalBytes;
    static constexpr int kFitting = (kMostShared - kPreparedBytes) / kStageBytes;
    static constexpr int kRing = kFitting < kMostStages ? kFitting : kMostStages;
    static_assert(kRing >= 2 && kStageBytes % 16 == 0, "a stage is copied while another is read");
};

template <class Format, int kTiles, int kColumns>
class Matmul {
    using Layout = MatmulLayout<Format, kTiles, kColumns>;
    static constexpr int kOutputWarps = Layout::kOutputWarps;
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
        // A block makes the split of its place along y, or all of them if it is the only one there.
        const bool is_alone = gridDim.y == 1;
        const uint32_t first = blockIdx.y, last = is_alone ? params_.num_splits - 1 : first;
        uint32_t stage = first == 0 ? 0 : end_of(first - 1);
        const uint32_t end = end_of(last), ahead = params_.ring_len - 1;
        uint32_t into = 0, from = 0;
        for (; into < ahead; ++into) {
            if (stage + into < end) copy(stage + into, into);
            commit_copies();
        }
#pragma unroll 1
        for (uint32_t split = first; split <= last; ++split) {
            float sums[kOutputTiles][kTiles][4] = {};
            const uint32_t split_end = end_of(split);
#pragma unroll 1
            for (; stage < split_end; ++stage) {
                // A shorter ring is for copies that are made at once, where waiting is nothing.
                if (params_.ring_len == Layout::kRing) {
                    wait_copies<Layout::kRing - 2>();
                } else {
                    wait_copies<0>();
                }
                // The copies of all threads are there, and all have read the stage that the next copies overwrite.
                __syncthreads();
                if (stage + ahead < end) copy(stage + ahead, into);
                commit_copies();
                if constexpr (Format::kHasMinima) {
                    prepare(stage, from);
                    __syncthreads();
                }
                multiply(sums, from);
                into = into + 1 == params_.ring_len ? 0 : into + 1;
                from = from + 1 == params_.ring_len ? 0 : from + 1;
            }
            store(sums, split > first);
        }
    }

private:
    /// One past the last stage of a split.
    inline __device__ uint32_t end_of(uint32_t split) const {
        return uint32_t(uint64_t(split + 1) * params_.num_stages / params_.num_splits);
    }

    /// Starts the copies of a stage into place `slot` of the ring. What is past the last row or output becomes zero, and
    /// is not read.
    inline __device__ void copy(uint32_t stage, uint32_t slot) const {
        unsigned char* to = place(slot);
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

    /// Where a place of the ring starts; what is prepared lies before the ring.
    static inline __device__ unsigned char* place(uint32_t slot) {
        return shared_memory() + Layout::kPreparedBytes + slot * Layout::kStageBytes;
    }

    static inline __device__ Factor* factors() { return reinterpret_cast<Factor*>(shared_memory()); }
    static inline __device__ float* totals() { return reinterpret_cast<float*>(shared_memory() + Layout::kFactorBytes); }

    /// Unpacks the factors of a stage and sums its activations by row and chunk.
    inline __device__ void prepare(uint32_t stage, uint32_t slot) const {
        const unsigned char* scales = place(slot) + Layout::kCodeBytes;
        const unsigned char* rows = scales + Layout::kScaleBytes;
        const uint32_t output = threadIdx.x % kTileOutputs;
        const auto record = Format::load_record(scales + output * Format::kRecord);
        const int first_group = stage % Format::kRecordStages * kStageChunks<Format>;
#pragma unroll
        for (int first = 0; first < kStageChunks<Format>; first += Layout::kThreads / kTileOutputs) {
            const int chunk = first + int(threadIdx.x / kTileOutputs);
            factors()[chunk * kTileOutputs + output] = Format::factor(record, first_group + chunk);
        }
        for (uint32_t at = threadIdx.x / kLanes; at < Layout::kRows / 8 * kStageChunks<Format>;
             at += Layout::kThreads / kLanes) {
            const uint32_t chunk = at % kStageChunks<Format>, row = at / kStageChunks<Format> * 8;
            const uint4 x = *reinterpret_cast<const uint4*>(rows + row_offset(row + group(), chunk, quad()));
            const uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
            float sums[4] = {};
            Format::multiply(sums, ones, x.x, x.y);
            Format::multiply(sums, ones, x.z, x.w);
            if (group() == 0) {
                const float2 pair = {sums[0], sums[1]};
                *reinterpret_cast<float2*>(totals() + chunk * Layout::kRows + row + 2 * quad()) = pair;
            }
        }
    }

    /// Adds the products of a stage.
    inline __device__ void multiply(float (&sums)[kOutputTiles][kTiles][4], uint32_t slot) const {
        const unsigned char* codes = place(slot);
        const uint32_t output = first_output_of_lane();
#pragma unroll
        for (int slab = 0; slab < Format::kStageSlabs; ++slab) {
            uint4 pieces[kOutputTiles][2];
#pragma unroll
            for (int i = 0; i < 2 * kOutputTiles; ++i) {
                const uint32_t at = slab * kSlabBytes + (output + 8 * i) * kSlabRow + quad() * 16;
                pieces[i / 2][i % 2] = *reinterpret_cast<const uint4*>(codes + at);
            }
            // All chunks of a quantised slab at once, with many rows, would ask for more registers than there are.
            constexpr int side_by_side = Format::kCoded && kTiles > 2 ? 8 / kTiles : Format::kSlabChunks;
#pragma unroll side_by_side
            for (int chunk = 0; chunk < Format::kSlabChunks; ++chunk) {
                multiply_chunk(sums, pieces, slot, slab * Format::kSlabChunks + chunk);
            }
        }
    }

    inline __device__ void multiply_chunk(float (&sums)[kOutputTiles][kTiles][4], const uint4 (&pieces)[kOutputTiles][2],
                                          uint32_t slot, int chunk) const {
        const unsigned char* scales = place(slot) + Layout::kCodeBytes;
        const unsigned char* rows = scales + Layout::kScaleBytes;
        uint32_t a[kOutputTiles][2][4];
        Factor own[kOutputTiles][2];
#pragma unroll
        for (int i = 0; i < 2 * kOutputTiles; ++i) {
            const uint32_t output = first_output_of_lane() + 8 * i;
            uint32_t pairs[4];
            Format::decode(pairs, pieces[i / 2][i % 2], chunk % Format::kSlabChunks);
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) a[i / 2][pair / 2][i % 2 + pair % 2 * 2] = pairs[pair];
            own[i / 2][i % 2] = Format::kHasMinima
                                    ? factors()[chunk * kTileOutputs + output]
                                    : Format::factor(Format::load_record(scales + output * Format::kRecord), chunk);
        }
        const uint32_t row = threadIdx.x / kLanes / kOutputWarps * (8 * kTiles);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            const uint4 x = *reinterpret_cast<const uint4*>(rows + row_offset(row + 8 * t + group(), chunk, quad()));
            float2 total = {0.0f, 0.0f};
            if constexpr (Format::kHasMinima) {
                const float* from = totals() + chunk * Layout::kRows + row + 8 * t + 2 * quad();
                total = *reinterpret_cast<const float2*>(from);
            }
#pragma unroll
            for (int tile = 0; tile < kOutputTiles; ++tile) {
                if constexpr (Format::kCoded) {
                    float products[4] = {};
                    Format::multiply(products, a[tile][0], x.x, x.y);
                    Format::multiply(products, a[tile][1], x.z, x.w);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const Factor& factor = own[tile][i / 2];
                        float& sum = sums[tile][t][i];
                        sum = fmaf(factor.scale, products[i], sum);
                        if (Format::kHasMinima) sum = fmaf(-factor.minimum, i % 2 == 0 ? total.x : total.y, sum);
                    }
                } else {
                    Format::multiply(sums[tile][t], a[tile][0], x.x, x.y);
                    Format::multiply(sums[tile][t], a[tile][1], x.z, x.w);
                }
            }
        }
    }

    /// Writes the sums of a split, or adds them to what is there.
    inline __device__ void store(const float (&sums)[kOutputTiles][kTiles][4], bool adds) const {
        const uint32_t output = first_output_of_lane();
        const uint32_t row = first_row_ + threadIdx.x / kLanes / kOutputWarps * (8 * kTiles) + 2 * quad();
        float* to = params_.out + first_output_ + output;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t to_row = row + 8 * t + i;
                const bool is_row = to_row < params_.rows;
                float* at = to + (uint64_t(blockIdx.y) * params_.rows + to_row) * params_.out_features;
#pragma unroll
                for (int j = 0; j < 2 * kOutputTiles; ++j) {
                    if (!is_row || output + 8 * j >= num_outputs_) continue;
                    const float sum = sums[j / 2][t][j % 2 * 2 + i];
                    at[8 * j] = adds ? at[8 * j] + sum : sum;
                }
            }
            // All loads at once would not leave registers for the sums.
            if (t % 2 == 1) __syncwarp();
        }
    }

    /// The first output of the tile that a lane has; the others follow 8 apart.
    static inline __device__ uint32_t first_output_of_lane() {
        return threadIdx.x / kLanes % kOutputWarps * (16 * kOutputTiles) + group();
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
