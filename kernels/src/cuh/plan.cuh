// Which row sees which positions, as it lies on the device for one step; mirrored by `ops/attention/device_plan.rs`.
#pragma once

#include "element.cuh"

/// What the arrays of a step are long enough for, and the grids of its launches.
struct PlanShape {
    uint32_t num_rows, split_tiles, whole_tiles, num_splits;
};

/// A row of the packed batch.
struct DeviceRow {
    /// Where its page table starts in `pages`
    uint32_t first_page;
    /// Where its key and value go
    uint32_t position;
    /// It sees positions `0..visible_end`. 0 where the row only fills the shape
    uint32_t visible_end;
    /// Place of its first query among those of all split tiles; `kNoSlot` for rows of whole tiles
    uint32_t slot;
};

constexpr uint32_t kNoSlot = 0xffffffffu;

/// Consecutive queries of one page table that share a block. With `group` the query heads that read one key-value head,
/// query `i` is head `i % group` of the group in row `i / group`.
struct DeviceTile {
    uint32_t first_query;
    /// 0 where the tile only fills the shape
    uint32_t num_queries;
    uint32_t first_page;
    /// Place of its first query among those of all split tiles
    uint32_t first_slot;
    /// The smallest and the largest `visible_end` of its rows
    uint32_t shortest_end, longest_end;
};

struct DevicePlan {
    /// The shape of the step that is there. Launches for another shape do nothing
    const PlanShape* held;
    const DeviceRow* rows;
    const DeviceTile* split_tiles;
    const DeviceTile* whole_tiles;
    const uint32_t* pages;
    /// The shape of the launch
    PlanShape shape;
    uint32_t page_len, group;
};

static_assert(sizeof(PlanShape) == 16 && sizeof(DeviceRow) == 16 && sizeof(DeviceTile) == 24, "mirrored in device_plan.rs");
static_assert(sizeof(DevicePlan) == 5 * 8 + 6 * 4, "mirrored in device_plan.rs");

/// Whether the arrays hold a step of the shape of the launch, so that what is read from them is what it seems.
inline __device__ bool plan_is_held(const DevicePlan& plan) {
    const uint4 held = *reinterpret_cast<const uint4*>(plan.held);
    return held.x == plan.shape.num_rows && held.y == plan.shape.split_tiles && held.z == plan.shape.whole_tiles &&
           held.w == plan.shape.num_splits;
}

/// Where `position` of a table lies in a cache `[pages, kv_heads, page_len, ..]`, in vectors of a head.
inline __device__ uint32_t slot_of(const DevicePlan& plan, uint32_t first_page, uint32_t position, uint32_t num_kv_heads,
                                   uint32_t kv_head) {
    const uint32_t page = plan.pages[first_page + position / plan.page_len];
    return (page * num_kv_heads + kv_head) * plan.page_len + position % plan.page_len;
}
