//! Scoring on a device: one upload, the launches, one read-back.

use std::sync::Arc;

use super::{
    OP, ScoreQuery, ScoreResult,
    pack::Packed,
    params::{
        Adjustment, CANDIDATE_LEN, CUT_LEN, MAX_VOCAB, PARTIAL_LEN, Record, Row, SPLIT_TOKENS, ScoreParams,
        TOUCHED_LEN, Top, flag,
    },
};
use crate::{
    KernelError,
    device::{Array, Device, ElementType, Launch},
};

/// All kernels.
pub(crate) const KERNEL_NAMES: [&str; 5] =
    ["score_partials", "score_top", "score_adjust", "score_filter", "score_combine"];
/// Threads and shared bytes of each; the constants of the same files.
const PARTIALS: (&str, u32, u32) = (KERNEL_NAMES[0], 256, 8 * 64 + 1024);
const TOP: (&str, u32, u32) = (KERNEL_NAMES[1], 256, 8 * 8);
const ADJUST: (&str, u32, u32) = (KERNEL_NAMES[2], 256, 20);
const FILTER: (&str, u32, u32) = (KERNEL_NAMES[3], 1024, 2048 * 8 + 32 * 8 + 2 * 8 + 4 + 32 * 4 + 4);
const COMBINE: (&str, u32, u32) = (KERNEL_NAMES[4], 32, 0);
/// Rows that one launch can have.
const MOST_ROWS: usize = 65535;
/// Changes, and tokens held down, that there is room for at first: for each row, and at least.
const FIRST_ADJUSTMENTS: (usize, usize) = (1024, 4096);
const FIRST_HELD: (usize, usize) = (64, 1024);

/// The most that a [`ScoreBatch`] is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreSizes {
    /// Rows of a batch.
    pub max_rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Longest list of likeliest tokens.
    pub max_top: usize,
}

/// What the launches of a batch depend on: equal shapes have equal launches for the same logits, so that recordings can be
/// kept by shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScoreShape {
    /// Rows.
    pub num_rows: usize,
    /// Log-probabilities of rows that are adjusted are wanted.
    before_adjustments: bool,
    adjusts: bool,
    filters: bool,
    lists_top: bool,
    /// How often the memory of the batch has moved.
    moves: u32,
}

/// Room for scoring batches of rows, one at a time.
#[derive(Debug)]
pub struct ScoreBatch {
    device: Arc<dyn Device>,
    sizes: ScoreSizes,
    upload: Upload,
    moves: u32,
    work: Work,
    /// Records, then lists.
    output: Array,
    asked: Vec<Asked>,
}

/// What the kernels read: rows, tokens held down, changes, in one piece.
#[derive(Debug)]
struct Upload {
    bytes: Array,
    rows: Array,
    held: Array,
    adjustments: Array,
    /// Logits before changes, as many as there are changes.
    raw: Array,
}

/// What the kernels leave for each other.
#[derive(Debug)]
struct Work {
    partials: Array,
    raw_partials: Array,
    cuts: Array,
    touched: Array,
    candidates: Array,
}

/// What a row of the last batch wants back.
#[derive(Debug, Clone, Copy)]
struct Asked {
    logprob: bool,
    confidence: bool,
    num_top: usize,
}

impl ScoreBatch {
    /// Takes device memory for batches of these sizes.
    ///
    /// # Errors
    /// If a size is 0 or too large for the kernels, or there is not enough memory.
    pub fn new(device: &Arc<dyn Device>, sizes: ScoreSizes) -> Result<Self, KernelError> {
        let limits = [("vocab", sizes.vocab, MAX_VOCAB), ("rows", sizes.max_rows, MOST_ROWS)];
        for (what, size, limit) in limits {
            if size == 0 {
                return Err(KernelError::Zero { op: OP, what });
            }
            if size > limit {
                return Err(KernelError::OutOfRange { op: OP, what, index: size, len: limit + 1 });
            }
        }
        let splits = sizes.vocab.div_ceil(SPLIT_TOKENS);
        let parts = sizes.max_rows * splits;
        let list = sizes.max_top.min(sizes.vocab);
        let lists = parts.checked_mul(list).and_then(|len| len.checked_mul(CANDIDATE_LEN));
        let lists = lists.ok_or(KernelError::Overflow { op: OP, what: "max_top" })?;
        let bytes = |len: usize| Array::new(device, ElementType::U8, len);
        Ok(Self {
            upload: Upload::new(
                device,
                sizes.max_rows,
                at_first(FIRST_HELD, sizes.max_rows),
                at_first(FIRST_ADJUSTMENTS, sizes.max_rows),
            )?,
            work: Work {
                partials: bytes(parts * PARTIAL_LEN)?,
                raw_partials: bytes(parts * PARTIAL_LEN)?,
                cuts: bytes(sizes.max_rows * CUT_LEN)?,
                touched: bytes(sizes.max_rows * TOUCHED_LEN)?,
                candidates: bytes(lists)?,
            },
            output: bytes(sizes.max_rows * (size_of::<Record>() + list * size_of::<Top>()))?,
            sizes: ScoreSizes { max_top: list, ..sizes },
            device: Arc::clone(device),
            moves: 0,
            asked: Vec::new(),
        })
    }

    /// Copies the queries of the next batch to the device, in one write. Row `i` of the logits answers `queries[i]`.
    ///
    /// # Errors
    /// If there are more rows than room, a query is outside its domain or names a token outside the vocabulary, there is
    /// no memory, or the driver refuses.
    pub fn prepare(&mut self, queries: &[ScoreQuery]) -> Result<ScoreShape, KernelError> {
        let ScoreSizes { max_rows, vocab, max_top } = self.sizes;
        if queries.len() > max_rows {
            return Err(KernelError::OutOfRange { op: OP, what: "rows", index: queries.len(), len: max_rows + 1 });
        }
        // A list is no longer than the vocabulary, whatever was asked for.
        let longest = if max_top == vocab { usize::MAX - 1 } else { max_top };
        let packed = Packed::new(queries, vocab, longest)?;
        if !self.upload.has_room(&packed) {
            let [held, adjustments] =
                [packed.held.len(), packed.adjustments.len()].map(|len| len.checked_next_power_of_two().unwrap_or(len));
            self.upload = Upload::new(
                &self.device,
                max_rows,
                held.max(at_first(FIRST_HELD, max_rows)),
                adjustments.max(at_first(FIRST_ADJUSTMENTS, max_rows)),
            )?;
            self.moves += 1;
        }
        self.upload.write(&packed)?;
        self.asked = queries
            .iter()
            .zip(&packed.rows)
            .map(|(query, row)| Asked {
                logprob: row.flags & flag::LOGPROB != 0,
                confidence: query.confidence.is_some() && query.given.is_none(),
                num_top: row.num_top as usize,
            })
            .collect();
        Ok(ScoreShape {
            num_rows: queries.len(),
            before_adjustments: packed.any_has(flag::LOGPROB | flag::ADJUSTED),
            adjusts: packed.any_has(flag::ADJUSTED),
            filters: packed.any_has(flag::FILTER),
            lists_top: packed.rows.iter().any(|row| row.num_top > 0),
            moves: self.moves,
        })
    }

    /// The launches that score `logits`, f32 `[rows, vocab]`, for the batch that was prepared, or another of the same
    /// shape. The logits of rows with adjustments are adjusted in place.
    ///
    /// # Errors
    /// If the logits are too short or not f32, or the memory has moved since the shape was made.
    pub fn launches(&self, shape: &ScoreShape, logits: &Array) -> Result<Vec<Launch>, KernelError> {
        let ScoreSizes { max_rows, vocab, max_top } = self.sizes;
        if shape.moves != self.moves || shape.num_rows > max_rows {
            return Err(KernelError::StaleShape { op: OP });
        }
        logits.expect("logits", ElementType::F32, shape.num_rows * vocab)?;
        let num_splits = vocab.div_ceil(SPLIT_TOKENS) as u32;
        let (Upload { rows, held, adjustments, raw, .. }, work) = (&self.upload, &self.work);
        let params = ScoreParams {
            logits: logits.address(),
            rows: rows.address(),
            adjustments: adjustments.address(),
            raw: raw.address(),
            held: held.address(),
            partials: work.partials.address(),
            raw_partials: work.raw_partials.address(),
            cuts: work.cuts.address(),
            touched: work.touched.address(),
            candidates: work.candidates.address(),
            records: self.output.address(),
            top: self.output.address() + (max_rows * size_of::<Record>()) as u64,
            vocab: vocab as u32,
            num_splits,
            top_len: max_top as u32,
            is_raw: 0,
        };
        let arrays = [
            logits,
            rows,
            held,
            adjustments,
            raw,
            &work.partials,
            &work.raw_partials,
            &work.cuts,
            &work.touched,
            &work.candidates,
            &self.output,
        ];
        let launch = |(kernel, block_dim, shared_bytes), grid: [u32; 2], is_raw: bool| {
            let params = ScoreParams { is_raw: is_raw.into(), ..params };
            Launch::new(kernel, (grid, block_dim, shared_bytes), params, &arrays)
        };
        let num_rows = shape.num_rows as u32;
        let (parts, whole) = ([num_splits, num_rows], [num_rows, 1]);
        let steps = [
            (shape.lists_top, TOP, parts, false),
            (shape.before_adjustments, PARTIALS, parts, true),
            (shape.adjusts, ADJUST, whole, false),
            (shape.filters, FILTER, whole, false),
            (true, PARTIALS, parts, false),
            (true, COMBINE, whole, false),
        ];
        Ok(steps
            .into_iter()
            .filter(|step| step.0)
            .map(|(_, kernel, grid, is_raw)| launch(kernel, grid, is_raw))
            .collect())
    }

    /// What the rows of the batch came to, in one read. Waits for the launches.
    ///
    /// # Errors
    /// If the driver refuses, or work before has failed.
    pub fn read(&self) -> Result<Vec<ScoreResult>, KernelError> {
        let ScoreSizes { max_rows, max_top, .. } = self.sizes;
        let wants_top = self.asked.iter().any(|asked| asked.num_top > 0);
        let num_rows = self.asked.len();
        let lists = max_rows * size_of::<Record>();
        let len =
            if wants_top { lists + num_rows * max_top * size_of::<Top>() } else { num_rows * size_of::<Record>() };
        // In words, so that records are aligned.
        let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        self.output.read_bytes(&mut bytes[..len])?;
        let records: &[Record] = bytemuck::cast_slice(&bytes[..num_rows * size_of::<Record>()]);
        let top: &[Top] = bytemuck::cast_slice(&bytes[lists.min(len)..len]);
        let result = |(row, (asked, record)): (usize, (&Asked, &Record))| ScoreResult {
            token: record.token,
            is_broken: record.facts & 1 != 0,
            has_nan: record.facts & 2 != 0,
            logprob: asked.logprob.then_some(record.logprob),
            confidence: asked.confidence.then_some(record.confidence),
            top: match asked.num_top {
                0 => Vec::new(),
                k => top[row * max_top..][..k].iter().map(|top| (top.token, top.logprob)).collect(),
            },
        };
        Ok(self.asked.iter().zip(records).enumerate().map(result).collect())
    }
}

/// What there is room for at first in batches of up to `max_rows` rows.
fn at_first((of_row, least): (usize, usize), max_rows: usize) -> usize {
    max_rows.saturating_mul(of_row).max(least)
}

impl Upload {
    fn new(device: &Arc<dyn Device>, rows: usize, held: usize, adjustments: usize) -> Result<Self, KernelError> {
        let parts = [
            (ElementType::U8, rows * size_of::<Row>()),
            (ElementType::U32, held),
            (ElementType::U8, adjustments.saturating_mul(size_of::<Adjustment>())),
        ];
        let bytes = Array::new(device, ElementType::U8, Array::carved_bytes(&parts))?;
        let cut = bytes.carve(&parts)?;
        let [rows, held, changes] = [0, 1, 2].map(|i| cut[i].clone());
        let raw = Array::new(device, ElementType::F32, adjustments)?;
        Ok(Self { bytes, rows, held, adjustments: changes, raw })
    }

    fn has_room(&self, packed: &Packed) -> bool {
        packed.held.len() <= self.held.len() && packed.adjustments.len() <= self.raw.len()
    }

    fn write(&self, packed: &Packed) -> Result<(), KernelError> {
        let at = |array: &Array| (array.address() - self.bytes.address()) as usize;
        let parts: [(usize, &[u8]); 3] = [
            (at(&self.rows), bytemuck::cast_slice(&packed.rows)),
            (at(&self.held), bytemuck::cast_slice(&packed.held)),
            (at(&self.adjustments), bytemuck::cast_slice(&packed.adjustments)),
        ];
        let used = parts.iter().filter(|(_, part)| !part.is_empty()).map(|(at, part)| at + part.len()).max();
        let mut bytes = vec![0u8; used.unwrap_or(0)];
        for (at, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            bytes[at..at + part.len()].copy_from_slice(part);
        }
        self.bytes.write_bytes(0, &bytes)
    }
}
