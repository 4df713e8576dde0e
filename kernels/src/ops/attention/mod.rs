//! Attention over paged keys and values, and the write that fills the pages.

use candle_core::{CpuStorage, CustomOp3, InplaceOp2, Layout, Shape, Tensor};

use crate::{
    KernelError,
    arch::CpuLevel,
    tensor::{check_f32, dims3, shape_error, values, wrap},
};

pub(crate) mod device;
pub(crate) mod device_plan;
mod partition;
mod plan;
pub(crate) mod reference;
mod schedule;

pub use plan::{AttentionPlan, PlanRow};

use reference::HeadShape;

const OP: &str = "attention";
const WRITE_OP: &str = "write_kv";
const CACHE: &str = "[pages, kv_heads, page_len, head_dim]";

/// Writes `rows`, `[rows, kv_heads, head_dim]`, to each row's position in `cache`,
/// `[pages, kv_heads, page_len, head_dim]`, in place. Of two rows with the same position in the same page the later one
/// stays.
pub fn write_kv(cache: &Tensor, rows: &Tensor, plan: &AttentionPlan) -> Result<(), KernelError> {
    let (num_kv_heads, head_dim) = check_cache(WRITE_OP, "cache", cache, plan)?;
    check_f32(WRITE_OP, "rows", rows)?;
    if rows.dims() != [plan.num_rows(), num_kv_heads, head_dim] {
        let expected = format!("[{}, {num_kv_heads}, {head_dim}]", plan.num_rows());
        return Err(shape_error(WRITE_OP, "rows", expected, rows));
    }
    Ok(cache
        .inplace_op2(rows, &WriteKv { plan, shape: HeadShape { num_heads: num_kv_heads, num_kv_heads, head_dim } })?)
}

/// Softmax attention: each row of `q`, `[rows, heads, head_dim]`, over the positions that `plan` lets it see, with
/// scores multiplied by `scale`. Returns `[rows, heads * head_dim]`. Query head `h` reads key-value head
/// `h / (heads / kv_heads)`. Positions that a row does not see are never read into its result, whatever they hold.
pub fn attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    plan: &AttentionPlan,
    scale: f32,
) -> Result<Tensor, KernelError> {
    let (num_kv_heads, head_dim) = check_cache(OP, "keys", keys, plan)?;
    check_cache(OP, "values", values, plan)?;
    if keys.dims() != values.dims() {
        return Err(shape_error(OP, "values", format!("{:?}, as the keys", keys.dims()), values));
    }
    check_f32(OP, "q", q)?;
    let (rows, num_heads, q_dim) = dims3(OP, "q", "[rows, heads, head_dim]", q)?;
    if rows != plan.num_rows() || q_dim != head_dim {
        return Err(shape_error(OP, "q", format!("[{}, heads, {head_dim}]", plan.num_rows()), q));
    }
    if num_heads == 0 || num_heads % num_kv_heads != 0 {
        return Err(KernelError::HeadGroups { heads: num_heads, kv_heads: num_kv_heads });
    }
    let shape = HeadShape { num_heads, num_kv_heads, head_dim };
    Ok(q.apply_op3_no_bwd(keys, values, &Attention { plan, shape, scale })?)
}

/// Key-value heads and head size of a cache that holds all pages of `plan`.
fn check_cache(
    op: &'static str,
    what: &'static str,
    cache: &Tensor,
    plan: &AttentionPlan,
) -> Result<(usize, usize), KernelError> {
    check_f32(op, what, cache)?;
    let (num_pages, num_kv_heads, page_len, head_dim) =
        cache.dims4().map_err(|_| shape_error(op, what, CACHE, cache))?;
    if page_len != plan.page_len() || num_kv_heads == 0 || head_dim == 0 {
        return Err(shape_error(op, what, format!("[pages, kv_heads, {}, head_dim]", plan.page_len()), cache));
    }
    if plan.page_end() > num_pages {
        return Err(KernelError::OutOfRange { op, what: "page", index: plan.page_end() - 1, len: num_pages });
    }
    Ok((num_kv_heads, head_dim))
}

struct WriteKv<'a> {
    plan: &'a AttentionPlan,
    shape: HeadShape,
}

impl InplaceOp2 for WriteKv<'_> {
    fn name(&self) -> &'static str {
        WRITE_OP
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        let rows = values(WRITE_OP, "rows", rows, rows_layout).map_err(wrap)?;
        let not_contiguous = || wrap(KernelError::NotContiguous { op: WRITE_OP, what: "cache" });
        let (start, end) = cache_layout.contiguous_offsets().ok_or_else(not_contiguous)?;
        let CpuStorage::F32(cache) = cache else {
            let got = candle_core::backend::BackendStorage::dtype(cache);
            return Err(wrap(KernelError::DType { op: WRITE_OP, what: "cache", got }));
        };
        // A copy has nothing to speed up: the plain form is the kernel.
        reference::write_kv(&mut cache[start..end], rows, self.plan, self.shape);
        Ok(())
    }
}

struct Attention<'a> {
    plan: &'a AttentionPlan,
    shape: HeadShape,
    scale: f32,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        vals: &CpuStorage,
        vals_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let q = values(OP, "q", q, q_layout).map_err(wrap)?;
        let keys = values(OP, "keys", keys, keys_layout).map_err(wrap)?;
        let values = values(OP, "values", vals, vals_layout).map_err(wrap)?;
        let mut out = vec![0.0; q.len()];
        let call = schedule::Call {
            plan: self.plan,
            shape: self.shape,
            scale: self.scale,
            level: CpuLevel::current(),
            q,
            keys,
            values,
        };
        call.run(&mut out);
        let width = self.shape.num_heads * self.shape.head_dim;
        Ok((CpuStorage::F32(out), Shape::from((self.plan.num_rows(), width))))
    }
}
