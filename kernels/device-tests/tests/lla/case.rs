//! One call: its inputs, and the ways to run it.

use device_tests::Order;
use half::{bf16, f16};
use kernels::{
    LlaPlan, LlaRow, LlaSequence,
    device::{ElementType, LlaAddresses, LlaCounters, LlaDevicePlan, LlaProbe, LlaRounds},
    reference::{self, LlaInputs, LlaShape, LlaSolution},
};

pub(crate) const TYPES: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::BF16];
pub(crate) const WAYS: [Way; 2] = [Way::Prefill, Way::Decode];
/// Elements after an output that must stay as they were.
const GUARD: usize = 64;
const GUARD_VALUE: f32 = 777.0;

/// Which kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Prefill,
    Decode,
}

/// Heads, key-value heads, key size, value size.
pub(crate) const fn shape(num_heads: usize, num_kv_heads: usize, key_dim: usize, value_dim: usize) -> LlaShape {
    LlaShape { num_heads, num_kv_heads, key_dim, value_dim }
}

/// All inputs of one call.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) shape: LlaShape,
    pub(crate) plan: LlaPlan,
    pub(crate) num_pages: usize,
    /// `[rows, heads, key_dim]`
    pub(crate) q: Vec<f32>,
    /// `[pages, kv_heads, page_len, key_dim]`
    pub(crate) keys: Vec<f32>,
    /// `[pages, kv_heads, page_len, value_dim]`
    pub(crate) values: Vec<f32>,
    /// `[rows, heads, key_dim]`; the slopes are these if there are any.
    pub(crate) probe: Option<Vec<f32>>,
    /// `[rows, heads]`
    pub(crate) ridge: Vec<f32>,
    pub(crate) scale: f32,
    /// Instead of what is usual for the type.
    pub(crate) rounds: Option<LlaRounds>,
    /// Values from one row of the output to the next, if there are gaps.
    pub(crate) output_stride: Option<usize>,
}

/// What a call gave.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// `[rows, heads, value_dim]`, or with the gaps of [`Case::output_stride`].
    pub(crate) output: Vec<f32>,
    pub(crate) counters: LlaCounters,
}

impl Case {
    /// Normal numbers, a ridge of 0.5, the usual scale.
    pub(crate) fn new(shape: LlaShape, plan: LlaPlan, num_pages: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let slots = num_pages * shape.num_kv_heads * plan.page_len();
        let num_queries = plan.num_rows() * shape.num_heads;
        Self {
            q: random.normal(num_queries * shape.key_dim),
            keys: random.normal(slots * shape.key_dim),
            values: random.normal(slots * shape.value_dim),
            probe: None,
            ridge: vec![0.5; num_queries],
            scale: (shape.key_dim as f32).sqrt().recip(),
            rounds: None,
            output_stride: None,
            shape,
            plan,
            num_pages,
        }
    }

    /// The last `num_rows` rows of a causal sequence of `len` positions in one page.
    pub(crate) fn causal(shape: LlaShape, len: usize, num_rows: usize, seed: u64) -> Self {
        let sequence = LlaSequence { position: len - num_rows, num_rows };
        Self::new(shape, LlaPlan::contiguous(&[sequence], len, None).unwrap(), 1, seed)
    }

    pub(crate) fn with_ridge(mut self, ridge: f32) -> Self {
        self.ridge.fill(ridge);
        self
    }

    /// The inputs as the type holds them.
    pub(crate) fn rounded(&self, element_type: ElementType) -> Self {
        let round = |values: &[f32]| values.iter().map(|value| round(*value, element_type)).collect();
        Self {
            q: round(&self.q),
            keys: round(&self.keys),
            values: round(&self.values),
            probe: self.probe.as_deref().map(round),
            ..self.clone()
        }
    }

    /// The rows of this case that `of` names, with its caches.
    pub(crate) fn some_rows(&self, of: &[usize]) -> Self {
        let LlaShape { num_heads, key_dim, .. } = self.shape;
        let rows: Vec<LlaRow> = of.iter().map(|&row| self.plan.rows()[row]).collect();
        let tables = rows.iter().map(|row| row.table).max().map_or(0, |table| table + 1);
        let plan =
            LlaPlan::new((0..tables as u32).map(|page| vec![page]).collect(), rows, self.plan.page_len()).unwrap();
        let pick = |from: &[f32], len: usize| -> Vec<f32> {
            of.iter().flat_map(|&row| from[row * len..][..len].to_vec()).collect()
        };
        let (q, ridge) = (pick(&self.q, num_heads * key_dim), pick(&self.ridge, num_heads));
        Self { plan, q, ridge, ..self.clone() }
    }

    pub(crate) fn run(&self, way: Way, element_type: ElementType) -> Found {
        self.run_in(way, element_type, Order::Forward)
    }

    /// Runs the launches that a device would get, threads in the given order.
    pub(crate) fn run_in(&self, way: Way, element_type: ElementType, order: Order) -> Found {
        let mut plan = LlaDevicePlan::new(&self.plan, self.shape).unwrap();
        if let Some(stride) = self.output_stride {
            plan = plan.with_output_stride(stride).unwrap();
        }
        let [q, keys, values] = [&self.q, &self.keys, &self.values].map(|values| Buffer::new(values, element_type));
        let probe = self.probe.as_ref().map(|probe| Buffer::new(probe, element_type));
        let output_len = plan.tensor_lens()[3];
        let mut blank = vec![f32::NAN; output_len];
        blank.extend([GUARD_VALUE; GUARD]);
        let output = Buffer::new(&blank, element_type);
        let sizes = plan.decode_sizes();
        let num_marks = if way == Way::Prefill { plan.prefill_marks() } else { sizes.marks };
        // Nothing in the work space may be read before it was written.
        let mut marks = vec![u32::MAX; num_marks];
        let mut records = vec![u128::MAX; sizes.records.div_ceil(4)];
        let mut solutions = vec![u128::MAX; sizes.solutions.div_ceil(4)];
        let mut counters = LlaCounters::default();
        let addresses = LlaAddresses {
            q: q.address(),
            keys: keys.address(),
            values: values.address(),
            output: output.address(),
            tiles: plan.tiles().as_ptr() as u64,
            visible: plan.visible().as_ptr() as u64,
            pages: plan.pages().as_ptr() as u64,
            table_starts: plan.table_starts().as_ptr() as u64,
            marks: marks.as_mut_ptr() as u64,
            counters: &raw mut counters as u64,
            records: records.as_mut_ptr() as u64,
            solutions: solutions.as_mut_ptr() as u64,
        };
        let source = match &probe {
            Some(probe) => LlaProbe::Given(probe.address()),
            None => {
                let usual = if way == Way::Prefill { LlaRounds::prefill(element_type) } else { LlaRounds::decode() };
                let solver = self.rounds.unwrap_or(usual);
                LlaProbe::Solve { ridge: self.ridge.as_ptr() as u64, ridge_per_row: true, solver }
            }
        };
        let launches = match way {
            Way::Prefill => plan.prefill(element_type, self.scale, source, &addresses),
            Way::Decode => plan.decode(element_type, self.scale, source, &addresses),
        };
        // SAFETY: the buffers above have the lengths that the plan asks for and outlive the call; the kernels write to
        // the output, the marks, the counters and the work space only.
        unsafe { device_tests::run(&launches, order) }.unwrap();
        let mut output = output.read(output_len + GUARD, element_type);
        assert!(
            output.split_off(output_len).iter().all(|x| *x == round(GUARD_VALUE, element_type)),
            "wrote past the end"
        );
        Found { output, counters }
    }

    /// Calls `body` with the inputs in f64.
    pub(crate) fn in_f64<R>(&self, body: impl FnOnce(&LlaInputs<'_>) -> R) -> R {
        let (q, keys, values, ridge) = (wide(&self.q), wide(&self.keys), wide(&self.values), wide(&self.ridge));
        let scale = f64::from(self.scale);
        body(&LlaInputs { q: &q, keys: &keys, values: &values, ridge: &ridge, scale })
    }

    pub(crate) fn reference(&self) -> Vec<LlaSolution> {
        self.in_f64(|inputs| reference::lla(inputs, &self.plan, self.shape)).unwrap()
    }

    /// What the outputs should be, with the probes of the case if it has any.
    pub(crate) fn expected(&self) -> Vec<f64> {
        match &self.probe {
            Some(probe) => self.parallax(&wide(probe)),
            None => self.reference().into_iter().flat_map(|solution| solution.output).collect(),
        }
    }

    pub(crate) fn parallax(&self, probe: &[f64]) -> Vec<f64> {
        self.in_f64(|inputs| reference::parallax(inputs, probe, &self.plan, self.shape))
    }

    pub(crate) fn error(&self, found: &Found) -> f64 {
        vector_error(&wide(&found.output), &self.expected(), self.shape.value_dim)
    }
}

/// Values of a type in memory that starts at a multiple of 16 bytes.
struct Buffer(Vec<u128>);

impl Buffer {
    fn new(values: &[f32], element_type: ElementType) -> Self {
        let bytes: Vec<u8> = match element_type {
            ElementType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ElementType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            ElementType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            other => panic!("{other} is no type of these kernels"),
        };
        let word = |chunk: &[u8]| {
            let mut word = [0; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            u128::from_le_bytes(word)
        };
        Self(bytes.chunks(16).map(word).collect())
    }

    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn read(&self, len: usize, element_type: ElementType) -> Vec<f32> {
        // Kernels wrote through the address: the values are read anew.
        let bytes: Vec<u8> = std::hint::black_box(&self.0).iter().flat_map(|word| word.to_le_bytes()).collect();
        match element_type {
            ElementType::F32 => bytes.as_chunks::<4>().0[..len].iter().map(|b| f32::from_le_bytes(*b)).collect(),
            ElementType::F16 => {
                bytes.as_chunks::<2>().0[..len].iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            ElementType::BF16 => {
                bytes.as_chunks::<2>().0[..len].iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{other} is no type of these kernels"),
        }
    }
}

/// `value` as the type holds it.
pub(crate) fn round(value: f32, element_type: ElementType) -> f32 {
    match element_type {
        ElementType::F32 => value,
        ElementType::F16 => f16::from_f32(value).to_f32(),
        ElementType::BF16 => bf16::from_f32(value).to_f32(),
        other => panic!("{other} is no type of these kernels"),
    }
}

/// Largest relative error of rounding to the type.
pub(crate) fn rounding(element_type: ElementType) -> f64 {
    match element_type {
        ElementType::F32 => 2f64.powi(-24),
        ElementType::F16 => 2f64.powi(-11),
        ElementType::BF16 => 2f64.powi(-8),
        other => panic!("{other} is no type of these kernels"),
    }
}

/// Seeded numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Normal numbers, by Box and Muller.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (0..count)
            .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
            .collect()
    }
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Largest error of a vector of `dim` values, relative to its norm or, for small ones, to a twentieth of the largest
/// norm; infinite if anything is not finite.
pub(crate) fn vector_error(got: &[f64], expected: &[f64], dim: usize) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let largest = expected.chunks_exact(dim).map(norm).fold(0.0, f64::max);
    let errors = got.chunks_exact(dim).zip(expected.chunks_exact(dim)).map(|(got, expected)| {
        let difference: Vec<f64> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference);
        // Zero for zero is exact, also where everything expected is zero.
        if error == 0.0 { 0.0 } else { error / norm(expected).max(0.05 * largest) }
    });
    errors.fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { error.max(worst) })
}

#[track_caller]
pub(crate) fn assert_within(error: f64, tolerance: f64, what: &str) {
    assert!(error <= tolerance, "{what}: error {error:.2e}, allowed {tolerance:.2e}");
}
