//! Local linear attention over paged keys and values: every query fits its own linear function of the keys to the
//! values. [`reference`] has the equations.
//!
//! No matrix of a query is ever formed. Its system is solved by conjugate gradients, whose steps are the same products
//! with the keys as attention itself, and a query leaves as soon as its residual is small.
//!
//! Prefill and decoding are one algorithm, so that a row has the same bits alone, in a chunk and in a prompt. The
//! alternative for few rows is to sum the second moments of the keys once and to solve a dense system: it would give a row
//! other bits there than in a long batch, and takes as many products as `key_dim / 4` steps, where a handful is usual.

use candle_core::{Device, Storage, Tensor};

use crate::{
    KernelError,
    arch::CpuLevel,
    tensor::{check_f32, dims3, shape_error, values},
};

pub(crate) mod device;
pub(crate) mod launch;
pub(crate) mod launches;
mod output;
mod plan;
pub(crate) mod reference;
mod report;
pub(crate) mod room;
mod schedule;
mod segment;
mod solver;
mod strip;
mod tile;

pub use plan::{LlaPlan, LlaRow, LlaSequence};
pub use report::{LlaDetails, LlaReport};

use reference::LlaShape;
use schedule::{Call, ProbeSource};

const OP: &str = "lla";
const PARALLAX_OP: &str = "parallax";

/// The ridge `lam` of each query, on the scale of the variance of the keys; every value finite and above zero.
#[derive(Debug, Clone, Copy)]
pub enum Ridge<'a> {
    /// One for each head, `[heads]`.
    PerHead(&'a [f32]),
    /// One for each row and head, `[rows, heads]`.
    PerRow(&'a [f32]),
}

/// When a system counts as solved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LlaSolver {
    /// Norm of the residual, relative to that of the right side, at which a query is finished. Zero asks for as
    /// many steps as rounding allows.
    pub tolerance: f32,
    /// Most steps of a query. With none the result is softmax attention.
    pub max_iterations: usize,
}

impl Default for LlaSolver {
    /// A residual of 1e-5. Without rounding a query would need no more steps than it has dimensions or keys, and one. In
    /// f32 and with a ridge of 0.01, random keys took up to 107 steps in 64 dimensions and 139 in 128; the limit is above
    /// that, because a query that it stops may be further off than softmax attention.
    fn default() -> Self {
        Self { tolerance: 1e-5, max_iterations: 256 }
    }
}

/// How [`lla`] weighs keys and solves systems.
#[derive(Debug, Clone, Copy)]
pub struct LlaSettings<'a> {
    /// Factor of the scores; finite.
    pub scale: f32,
    /// Penalty on the slope that a query fits.
    pub ridge: Ridge<'a>,
    /// When to stop.
    pub solver: LlaSolver,
    /// Whether [`LlaOutput::details`] is wanted.
    pub details: bool,
}

/// What [`lla`] returns.
#[derive(Debug, Clone)]
pub struct LlaOutput {
    /// `[rows, heads * value_dim]`
    pub output: Tensor,
    /// How the solver fared.
    pub report: LlaReport,
    /// What each query found, if the settings ask for it.
    pub details: Option<LlaDetails>,
}

/// What [`parallax`] returns.
#[derive(Debug, Clone)]
pub struct ParallaxOutput {
    /// `[rows, heads * value_dim]`
    pub output: Tensor,
    /// Queries (heads of rows) that returned softmax attention because their probe, or its output, was not finite. Scores
    /// beyond f32 make that one not finite either.
    pub num_fallbacks: usize,
}

/// Local linear attention ("Local Linear Attention", arXiv:2510.01450): the output of a query is the value, at the query,
/// of the affine function of the keys that fits the values best under the softmax weights of the query, with the ridge
/// as penalty on the slope. Softmax attention is the same with a slope of zero, and the limit of a large ridge.
///
/// `q` is `[rows, heads, key_dim]`, keys are `[pages, kv_heads, page_len, key_dim]`, values
/// `[pages, kv_heads, page_len, value_dim]`. Query head `h` reads key-value head `h / (heads / kv_heads)`. The plan says
/// what each row sees; positions that a row does not see never reach its result, whatever they hold. A row that sees
/// nothing returns zeros. A query whose probe overflows returns softmax attention and is counted.
///
/// Memory beside inputs and outputs is that of a tile of queries for each thread: a few values for each position that
/// the tile sees.
///
/// # Errors
/// If shapes do not fit each other or the plan, a tensor is not f32 in host memory, or a number is outside its domain.
pub fn lla(
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    plan: &LlaPlan,
    settings: &LlaSettings<'_>,
) -> Result<LlaOutput, KernelError> {
    let shape = check(OP, q, (keys, values), plan, settings.scale)?;
    let LlaSolver { tolerance, max_iterations } = settings.solver;
    check_number(OP, "tolerance", &[tolerance], "finite and not negative", |x| x >= 0.0)?;
    let (ridge, expected) = match settings.ridge {
        Ridge::PerHead(ridge) => (ridge, shape.num_heads),
        Ridge::PerRow(ridge) => (ridge, plan.num_rows() * shape.num_heads),
    };
    check_length(OP, "ridge", ridge.len(), expected)?;
    check_number(OP, "ridge", ridge, "finite and above zero", |x| x > 0.0)?;
    let probe = ProbeSource::Solve { ridge: settings.ridge, tolerance, max_iterations };
    let found = run(OP, q, (keys, values), plan, (shape, settings.scale, probe, settings.details))?;
    let report = LlaReport::of(&found, settings.ridge, plan.num_rows(), shape);
    let details = settings.details.then(|| LlaDetails::of(&found, plan.num_rows(), shape)).flatten();
    Ok(LlaOutput { output: scatter(&found, plan, shape)?, report, details })
}

/// Attention with a slope that the caller gives ("Parallax", arXiv:2605.29157): the last pass of [`lla`] with `probe`,
/// `[rows, heads, key_dim]`, in the place of the solution. With `p_j` the softmax weights of a query, `kbar` and `vbar`
/// the means of keys and values under them, and `x` its probe, the output is
/// `vbar - sum_j p_j <x, k_j - kbar> v_j`. Shapes, errors and the treatment of what is not seen or not finite are those
/// of [`lla`].
pub fn parallax(
    q: &Tensor,
    probe: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    plan: &LlaPlan,
    scale: f32,
) -> Result<ParallaxOutput, KernelError> {
    let shape = check(PARALLAX_OP, q, (keys, values), plan, scale)?;
    check_f32(PARALLAX_OP, "probe", probe)?;
    if probe.dims() != q.dims() {
        return Err(shape_error(PARALLAX_OP, "probe", format!("{:?}, as the queries", q.dims()), probe));
    }
    let found = on_host(PARALLAX_OP, "probe", probe, |probe| {
        run(PARALLAX_OP, q, (keys, values), plan, (shape, scale, ProbeSource::Given(probe), false))
    })??;
    let num_fallbacks =
        found.iter().flat_map(|(_, found)| &found.progress).filter(|progress| progress.fallback).count();
    Ok(ParallaxOutput { output: scatter(&found, plan, shape)?, num_fallbacks })
}

/// Checks the shapes of a call and returns them.
fn check(
    op: &'static str,
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    plan: &LlaPlan,
    scale: f32,
) -> Result<LlaShape, KernelError> {
    check_f32(op, "q", q)?;
    let (num_kv_heads, key_dim) = check_cache(op, "keys", keys, plan)?;
    let (value_heads, value_dim) = check_cache(op, "values", values, plan)?;
    if value_heads != num_kv_heads {
        let expected = format!("[pages, {num_kv_heads}, {}, value_dim]", plan.page_len());
        return Err(shape_error(op, "values", expected, values));
    }
    let (rows, num_heads, q_dim) = dims3(op, "q", "[rows, heads, key_dim]", q)?;
    if rows != plan.num_rows() || q_dim != key_dim {
        return Err(shape_error(op, "q", format!("[{}, heads, {key_dim}]", plan.num_rows()), q));
    }
    if num_heads == 0 || num_heads % num_kv_heads != 0 {
        return Err(KernelError::HeadGroups { heads: num_heads, kv_heads: num_kv_heads });
    }
    check_number(op, "scale", &[scale], "finite", |_| true)?;
    Ok(LlaShape { num_heads, num_kv_heads, key_dim, value_dim })
}

/// Key-value heads and head size of a cache that holds all pages of `plan`.
fn check_cache(
    op: &'static str,
    what: &'static str,
    cache: &Tensor,
    plan: &LlaPlan,
) -> Result<(usize, usize), KernelError> {
    check_f32(op, what, cache)?;
    let expected = || format!("[pages, kv_heads, {}, dim] with heads and dim above zero", plan.page_len());
    let (num_pages, num_kv_heads, page_len, dim) =
        cache.dims4().map_err(|_| shape_error(op, what, expected(), cache))?;
    if page_len != plan.page_len() || num_kv_heads == 0 || dim == 0 {
        return Err(shape_error(op, what, expected(), cache));
    }
    if plan.page_end() > num_pages {
        return Err(KernelError::OutOfRange { op, what: "page", index: plan.page_end() - 1, len: num_pages });
    }
    Ok((num_kv_heads, dim))
}

/// Refuses numbers that are not finite or not in the `domain`, which `expected` puts in words.
fn check_number(
    op: &'static str,
    what: &'static str,
    numbers: &[f32],
    expected: &'static str,
    domain: impl Fn(f32) -> bool,
) -> Result<(), KernelError> {
    match numbers.iter().position(|&number| !number.is_finite() || !domain(number)) {
        Some(index) => Err(KernelError::Domain { op, what, index, expected, got: numbers[index] }),
        None => Ok(()),
    }
}

fn check_length(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<(), KernelError> {
    if got == expected { Ok(()) } else { Err(KernelError::Length { op, what, expected, got }) }
}

/// Calls `body` with the values of a tensor in host memory.
fn on_host<R>(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    body: impl FnOnce(&[f32]) -> R,
) -> Result<R, KernelError> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(body(values(op, what, storage, layout)?)),
        _ => Err(KernelError::NotOnHost { op, what }),
    }
}

type Found = Vec<(schedule::Queries, tile::Found)>;

/// Runs a checked call.
fn run(
    op: &'static str,
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    plan: &LlaPlan,
    (shape, scale, probe, details): (LlaShape, f32, ProbeSource<'_>, bool),
) -> Result<Found, KernelError> {
    let level = CpuLevel::current();
    on_host(op, "q", q, |q| {
        on_host(op, "keys", keys, |keys| {
            on_host(op, "values", values, |values| {
                Call { plan, shape, scale, probe, level, details, q, keys, values }.run()
            })
        })
    })??
}

/// The outputs in the order of the rows, `[rows, heads * value_dim]`.
fn scatter(found: &Found, plan: &LlaPlan, shape: LlaShape) -> Result<Tensor, KernelError> {
    let LlaShape { num_heads, value_dim, .. } = shape;
    let tiles = found.iter().map(|(queries, found)| (queries, &found.output[..]));
    let out = report::scatter(tiles, plan.num_rows() * num_heads, value_dim, num_heads);
    Ok(Tensor::from_vec(out, (plan.num_rows(), num_heads * value_dim), &Device::Cpu)?)
}
