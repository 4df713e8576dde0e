//! One call: its inputs, and ways to run it.

use std::sync::Arc;

use device_tests::Order;
use kernels::{
    AttentionPlan, PlanRow,
    device::{
        Array, Attention, Device, DevicePlan, ElementType, HeadShape, PlanLimits, PlanShape, attention,
        attention_records, padded, run,
    },
    reference,
};

use crate::common::{Random, device, download, plan, round, rounding, row, upload};

pub(crate) const fn shape(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { num_heads, num_kv_heads, head_dim }
}

/// Inputs as a type holds them.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) heads: HeadShape,
    pub(crate) element: ElementType,
    pub(crate) plan: AttentionPlan,
    pub(crate) num_pages: usize,
    pub(crate) q: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) scale: f32,
}

impl Case {
    pub(crate) fn new(
        (heads, element): (HeadShape, ElementType),
        (plan, num_pages): (AttentionPlan, usize),
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let slots = num_pages * heads.num_kv_heads * plan.page_len() * heads.head_dim;
        let mut values = |count| random.normal(count).into_iter().map(|x| round(x, element)).collect();
        // Scores of some size, so that weights differ.
        let scale = 1.5 / (heads.head_dim as f32).sqrt();
        let q = values(plan.num_rows() * heads.num_heads * heads.head_dim);
        Self { heads, element, num_pages, q, keys: values(slots), values: values(slots), scale, plan }
    }

    /// The last `num_rows` rows of a causal sequence of `len` positions.
    pub(crate) fn causal(of: (HeadShape, ElementType), len: usize, num_rows: usize) -> Self {
        let rows = (len - num_rows..len).map(|position| row(0, position, position + 1)).collect();
        Self::new(of, plan(&mut Random(len as u64), &[len], rows, 24), (len * 31 + num_rows) as u64)
    }

    /// The rows that `of` names, in that order.
    pub(crate) fn some_rows(&self, of: &[usize]) -> Self {
        let rows: Vec<PlanRow> = of.iter().map(|&row| self.plan.rows()[row]).collect();
        let num_tables = rows.iter().map(|row| row.table + 1).max().unwrap_or(0);
        let table = |index| {
            let row = self.plan.rows().iter().find(|row| row.table == index);
            row.map(|row| self.plan.pages(row).to_vec()).unwrap_or_default()
        };
        let plan = AttentionPlan::new((0..num_tables).map(table).collect(), rows, self.plan.page_len()).unwrap();
        let len = self.heads.num_heads * self.heads.head_dim;
        let q = of.iter().flat_map(|&row| self.q[row * len..][..len].to_vec()).collect();
        Self { plan, q, ..self.clone() }
    }

    pub(crate) fn limits(&self, max_rows: usize) -> PlanLimits {
        PlanLimits {
            max_rows,
            max_tables: max_rows,
            max_pages: self.num_pages * 4 + 16,
            max_positions: 4096,
            num_pages: self.num_pages,
            page_len: self.plan.page_len(),
            group: self.heads.num_heads / self.heads.num_kv_heads,
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.heads.num_heads * self.heads.head_dim
    }

    pub(crate) fn run(&self) -> Vec<f32> {
        self.run_in(Order::Forward, self.plan.num_rows())
    }

    /// Outputs `[rows, width]` of the rows of the plan, computed in a shape of `num_rows` rows.
    pub(crate) fn run_in(&self, order: Order, num_rows: usize) -> Vec<f32> {
        let loaded = Loaded::new(self, &device(order), num_rows);
        let step = loaded.plan.step(&self.plan, num_rows).unwrap();
        loaded.plan.write(&step).unwrap();
        let work = loaded.work(self, step.shape());
        run(&**loaded.q.device(), &attention(&loaded.call(self, &work, step.shape())).unwrap()).unwrap();
        loaded.outputs(self)
    }

    /// By the reference, with f64 sums.
    pub(crate) fn expected(&self) -> Vec<f32> {
        reference::attention(&self.q, (&self.keys, &self.values), &self.plan, self.heads, self.scale)
    }

    /// By a plain implementation that rounds the weights and the outputs to the type.
    fn plain(&self) -> Vec<f32> {
        let HeadShape { num_heads, num_kv_heads, head_dim } = self.heads;
        let mut out = Vec::new();
        for (index, row) in self.plan.rows().iter().enumerate() {
            for head in 0..num_heads {
                let at = |position: usize| self.slot(row, position, head / (num_heads / num_kv_heads)) * head_dim;
                let query = &self.q[(index * num_heads + head) * head_dim..][..head_dim];
                let score = |position| {
                    let key = &self.keys[at(position)..][..head_dim];
                    query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>() * self.scale
                };
                let scores: Vec<f32> = (0..row.visible_end).map(score).collect();
                let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|x| round((x - top).exp(), self.element)).collect();
                let total: f32 = weights.iter().sum();
                for d in 0..head_dim {
                    let sum: f32 = weights.iter().enumerate().map(|(p, w)| w * self.values[at(p) + d]).sum();
                    out.push(round(sum / total, self.element));
                }
            }
        }
        out
    }

    /// Vector of a position in the caches.
    pub(crate) fn slot(&self, row: &PlanRow, position: usize, kv_head: usize) -> usize {
        let page_len = self.plan.page_len();
        let page = self.plan.pages(row)[position / page_len] as usize;
        (page * self.heads.num_kv_heads + kv_head) * page_len + position % page_len
    }

    /// Refuses outputs whose largest error is more than twice that of the plain implementation, plus what f32 costs.
    #[track_caller]
    pub(crate) fn check(&self, got: &[f32], what: &str) {
        let (expected, plain) = (self.expected(), self.plain());
        let error = |got: &[f32]| {
            assert_eq!(got.len(), expected.len(), "{what}");
            let errors = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
            // NaN counts as infinite.
            errors.fold(0.0f64, |worst, error| if error.is_nan() { f64::INFINITY } else { worst.max(error) })
        };
        let (error, plain) = (error(got), error(&plain));
        let allowed = 2.0 * plain + 2e-6;
        assert!(
            error <= allowed,
            "{what}: error {error:.2e}, plain {plain:.2e}, rounding {:.2e}",
            rounding(self.element)
        );
    }
}

/// The arrays of a case on a device.
pub(crate) struct Loaded {
    pub(crate) plan: DevicePlan,
    pub(crate) q: Array,
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) output: Array,
}

/// Rows after the output that must stay as they were.
const GUARD_ROWS: usize = 1;

impl Loaded {
    /// Queries of rows past those of the case are NaN, as is the output.
    pub(crate) fn new(case: &Case, device: &Arc<dyn Device>, num_rows: usize) -> Self {
        let mut q = case.q.clone();
        q.resize(num_rows * case.width(), f32::NAN);
        let output_len = (num_rows + GUARD_ROWS) * padded(case.width());
        Self {
            plan: DevicePlan::new(device, case.limits(num_rows)).unwrap(),
            q: upload(device, &q, case.element),
            keys: upload(device, &case.keys, case.element),
            values: upload(device, &case.values, case.element),
            output: Array::new(device, case.element, output_len).unwrap(),
        }
    }

    /// Work space.
    pub(crate) fn work(&self, case: &Case, shape: PlanShape) -> Array {
        Array::new(self.q.device(), ElementType::F32, attention_records(shape, case.heads)).unwrap()
    }

    pub(crate) fn call<'a>(&'a self, case: &Case, records: &'a Array, shape: PlanShape) -> Attention<'a> {
        let Self { plan, q, keys, values, output } = self;
        Attention { q, keys, values, output, records, plan, shape, heads: case.heads, scale: case.scale }
    }

    /// Without padding, which must be zero, and without the rows that fill the shape.
    pub(crate) fn outputs(&self, case: &Case) -> Vec<f32> {
        let (mut all, width) = (download(&self.output), padded(case.width()));
        let guard = all.split_off(all.len() - GUARD_ROWS * width);
        assert!(guard.iter().all(|x| x.is_nan()), "wrote past the end");
        let mut rows = all.chunks_exact(width);
        let outputs = rows.by_ref().take(case.plan.num_rows()).flat_map(|row| {
            assert!(row[case.width()..].iter().all(|x| x.to_bits() == 0), "padding");
            row[..case.width()].to_vec()
        });
        let outputs = outputs.collect();
        assert!(rows.flatten().all(|x| x.to_bits() == 0), "rows that fill the shape");
        outputs
    }
}
