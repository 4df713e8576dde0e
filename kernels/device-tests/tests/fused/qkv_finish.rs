//! Queries, keys and values on their way to attention.

use std::sync::Arc;

use device_tests::Order;
use kernels::{
    AttentionPlan, KernelError,
    device::{
        Array, Device, DevicePlan, ElementType, HeadNorm, HeadShape, PartialSums, PlanLimits, QkvFinish, Recording,
        Rotary, qkv_finish, run,
    },
    reference::{self, RopeShape},
};

use crate::common::{
    HALVES, ORDERS, Random, assert_rounded, bits, device, download, partials, plan, row, skipped, upload,
};

const EPS: f32 = 1e-6;
/// What caches hold before.
const OLD: f32 = 0.125;

#[derive(Clone, Copy)]
struct Setup {
    heads: HeadShape,
    half: usize,
    is_normed: bool,
    element: ElementType,
}

struct Found {
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Everything but the partial sums and the plan.
struct Model {
    setup: Setup,
    device: Arc<dyn Device>,
    norms: [Vec<f32>; 2],
    tables: [Vec<f32>; 2],
    max_positions: usize,
}

impl Model {
    fn new(setup: Setup, order: Order, max_positions: usize) -> Self {
        let mut random = Random(7);
        let head_dim = setup.heads.head_dim;
        Self {
            setup,
            device: device(order),
            norms: [random.normal(head_dim), random.normal(head_dim)],
            tables: [random.normal(max_positions * setup.half), random.normal(max_positions * setup.half)],
            max_positions,
        }
    }

    fn limits(&self, max_rows: usize, num_pages: usize, page_len: usize) -> PlanLimits {
        let HeadShape { num_heads, num_kv_heads, .. } = self.setup.heads;
        let (max_positions, group) = (self.max_positions, num_heads / num_kv_heads);
        PlanLimits {
            max_rows,
            max_tables: max_rows,
            max_pages: 2 * num_pages,
            max_positions,
            num_pages,
            page_len,
            group,
        }
    }

    fn width(&self) -> usize {
        let HeadShape { num_heads, num_kv_heads, head_dim } = self.setup.heads;
        (num_heads + 2 * num_kv_heads) * head_dim
    }

    fn run(&self, sums: &PartialSums, plan: &AttentionPlan, num_pages: usize, num_rows: usize) -> Found {
        let device_plan = DevicePlan::new(&self.device, self.limits(num_rows, num_pages, plan.page_len())).unwrap();
        let step = device_plan.step(plan, num_rows).unwrap();
        device_plan.write(&step).unwrap();
        let Setup { heads, element, .. } = self.setup;
        let slots = num_pages * heads.num_kv_heads * plan.page_len() * heads.head_dim;
        let q = Array::new(&self.device, element, num_rows * heads.num_heads * heads.head_dim).unwrap();
        let [keys, values] = [(); 2].map(|()| upload(&self.device, &vec![OLD; slots], element));
        let arrays = self.arrays();
        let call = QkvFinish {
            partials: sums,
            plan: &device_plan,
            shape: step.shape(),
            heads,
            norm: self.norm(&arrays),
            rotary: self.rotary(&arrays),
            q: &q,
            keys: &keys,
            values: &values,
        };
        run(&*self.device, &[qkv_finish(&call).unwrap()]).unwrap();
        Found { q: download(&q), keys: download(&keys), values: download(&values) }
    }

    fn arrays(&self) -> [Array; 4] {
        [&self.norms[0], &self.norms[1], &self.tables[0], &self.tables[1]]
            .map(|values| Array::from_slice(&self.device, values).unwrap())
    }

    fn norm<'a>(&self, [q_weight, k_weight, ..]: &'a [Array; 4]) -> Option<HeadNorm<'a>> {
        self.setup.is_normed.then_some(HeadNorm { q_weight, k_weight, eps: EPS })
    }

    fn rotary<'a>(&self, [.., cos, sin]: &'a [Array; 4]) -> Option<Rotary<'a>> {
        (self.setup.half > 0).then_some(Rotary { cos, sin, half: self.setup.half })
    }

    /// The composition of the references.
    fn expected(&self, total: &[f32], plan: &AttentionPlan, num_pages: usize) -> Found {
        let HeadShape { num_heads, num_kv_heads, head_dim } = self.setup.heads;
        let columns = |start: usize, count: usize| -> Vec<f32> {
            total
                .chunks_exact(self.width())
                .flat_map(|row| row[start * head_dim..][..count * head_dim].to_vec())
                .collect()
        };
        let positions: Vec<usize> = plan.rows().iter().map(|row| row.position).collect();
        let shape = RopeShape { head_dim, rotary_dims: 2 * self.setup.half };
        let finish = |xs: Vec<f32>, weight: &[f32]| {
            let xs = if self.setup.is_normed { reference::rms_norm(&xs, weight, EPS) } else { xs };
            let tables = (&self.tables[0][..], &self.tables[1][..]);
            if self.setup.half == 0 { xs } else { reference::rope(&xs, tables, &positions, shape) }
        };
        let heads = HeadShape { num_heads: num_kv_heads, num_kv_heads, head_dim };
        let cache = |rows: &[f32]| {
            let mut cache = vec![OLD; num_pages * num_kv_heads * plan.page_len() * head_dim];
            reference::write_kv(&mut cache, rows, plan, heads);
            cache
        };
        Found {
            q: finish(columns(0, num_heads), &self.norms[0]),
            keys: cache(&finish(columns(num_heads, num_kv_heads), &self.norms[1])),
            values: cache(&columns(num_heads + num_kv_heads, num_kv_heads)),
        }
    }
}

fn shape(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { num_heads, num_kv_heads, head_dim }
}

/// Rows of two sequences, here and there.
fn some_plan(random: &mut Random) -> (AttentionPlan, usize) {
    let rows = vec![row(1, 0, 1), row(0, 36, 37), row(0, 12, 37), row(1, 7, 8), row(1, 5, 8)];
    plan(random, &[37, 8], rows, 5)
}

fn check(setup: Setup, order: Order) -> Found {
    let mut random = Random(11);
    let model = Model::new(setup, order, 40);
    let (plan, num_pages) = some_plan(&mut random);
    let (sums, total) = partials(&model.device, &mut random, (3, plan.num_rows(), model.width()), true);
    let (got, expected) =
        (model.run(&sums, &plan, num_pages, plan.num_rows()), model.expected(&total, &plan, num_pages));
    let what = format!("{:?}, half {}", setup.heads, setup.half);
    assert_rounded(&got.q, &expected.q, setup.element, &format!("q of {what}"));
    assert_rounded(&got.keys, &expected.keys, setup.element, &format!("keys of {what}"));
    assert_rounded(&got.values, &expected.values, setup.element, &format!("values of {what}"));
    got
}

#[test]
fn heads_match_the_references() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for (heads, half) in [
            (shape(1, 1, 8), 4),
            (shape(4, 2, 24), 8),
            (shape(6, 2, 64), 32),
            (shape(3, 3, 80), 20),
            (shape(4, 1, 128), 64),
            (shape(2, 1, 136), 64),
            (shape(2, 2, 256), 128),
            (shape(2, 1, 64), 0),
        ] {
            for is_normed in [false, true] {
                check(Setup { heads, half, is_normed, element }, Order::Forward);
            }
        }
    }
}

#[test]
fn the_order_of_threads_does_not_matter() {
    if skipped() {
        return;
    }
    let setup = Setup { heads: shape(6, 2, 96), half: 24, is_normed: true, element: ElementType::BF16 };
    let found = ORDERS.map(|order| check(setup, order));
    for each in &found {
        assert_eq!(bits(&each.q), bits(&found[0].q));
        assert_eq!(bits(&each.keys), bits(&found[0].keys));
        assert_eq!(bits(&each.values), bits(&found[0].values));
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    if skipped() {
        return;
    }
    let setup = Setup { heads: shape(4, 2, 64), half: 32, is_normed: true, element: ElementType::F16 };
    let mut random = Random(3);
    let model = Model::new(setup, Order::Shuffled, 40);
    let (plan, num_pages) = some_plan(&mut random);
    let (rows, width) = (plan.num_rows(), model.width());
    let (sums, _) = partials(&model.device, &mut random, (2, rows, width), false);
    let all = model.run(&sums, &plan, num_pages, rows);
    let values = download(&sums.sums);
    for (index, own) in plan.rows().iter().enumerate() {
        let alone = AttentionPlan::new(
            vec![plan.pages(&plan.rows()[1]).to_vec(), plan.pages(&plan.rows()[0]).to_vec()],
            vec![*own],
            plan.page_len(),
        )
        .unwrap();
        let own: Vec<f32> =
            (0..2).flat_map(|split| values[(split * rows + index) * width..][..width].to_vec()).collect();
        let own = PartialSums { sums: Array::from_slice(&model.device, &own).unwrap(), ..sums.clone() };
        // Three rows that only fill the shape come along.
        let padded: Vec<f32> = download(&own.sums)
            .chunks_exact(width)
            .flat_map(|row| [row.to_vec(), vec![f32::NAN; 3 * width]].concat())
            .collect();
        let padded = PartialSums { sums: Array::from_slice(&model.device, &padded).unwrap(), ..own.clone() };
        let (found, filled) = (model.run(&own, &alone, num_pages, 1), model.run(&padded, &alone, num_pages, 4));
        let len = 4 * 64;
        assert_eq!(bits(&found.q), bits(&all.q[index * len..][..len]), "row {index}");
        assert_eq!(bits(&found.q), bits(&filled.q[..len]), "row {index}");
        assert_eq!([bits(&found.keys), bits(&found.values)], [bits(&filled.keys), bits(&filled.values)]);
        let written = found.keys.iter().zip(&all.keys).filter(|(own, all)| **own != OLD && own == all).count();
        assert_eq!(written, 2 * 64, "row {index} writes its own keys and nothing else");
    }
}

/// Keys beyond fp16 become its largest number.
#[test]
fn large_values_stay_finite() {
    if skipped() {
        return;
    }
    let setup = Setup { heads: shape(1, 1, 8), half: 0, is_normed: false, element: ElementType::F16 };
    let model = Model::new(setup, Order::Forward, 4);
    let mut values = vec![1e6f32; 24];
    (values[9], values[10], values[17]) = (-1e6, f32::NAN, f32::NEG_INFINITY);
    let sums = PartialSums { sums: Array::from_slice(&model.device, &values).unwrap(), num_splits: 1, bias: None };
    let plan = AttentionPlan::new(vec![vec![0]], vec![row(0, 1, 2)], 2).unwrap();
    let found = model.run(&sums, &plan, 1, 1);
    assert_eq!(found.q, [65504.0; 8]);
    assert_eq!(found.keys[..8], [OLD; 8]);
    assert_eq!(found.keys[8..10], [65504.0, -65504.0]);
    assert!(found.keys[10].is_nan());
    assert_eq!(found.values[8..10], [65504.0, -65504.0]);
}

/// A recording runs what lies in the arrays when it is replayed, and nothing if that is of another shape.
#[test]
fn a_recording_follows_the_plan() {
    if skipped() {
        return;
    }
    let setup = Setup { heads: shape(2, 1, 16), half: 8, is_normed: false, element: ElementType::F16 };
    let model = Model::new(setup, Order::Forward, 8);
    let sums = Random(5).normal(2 * model.width());
    let sums = PartialSums { sums: Array::from_slice(&model.device, &sums).unwrap(), num_splits: 1, bias: None };
    let at = |first, second| {
        AttentionPlan::new(vec![vec![2, 0]], vec![row(0, first, first + 1), row(0, second, second + 1)], 4).unwrap()
    };
    let device_plan = DevicePlan::new(&model.device, model.limits(3, 3, 4)).unwrap();
    let q = Array::zeros(&model.device, ElementType::F16, 3 * 2 * 16).unwrap();
    let [keys, values] = [(); 2].map(|()| Array::zeros(&model.device, ElementType::F16, 3 * 4 * 16).unwrap());
    let (arrays, step) = (model.arrays(), device_plan.step(&at(0, 1), 2).unwrap());
    let call = QkvFinish {
        partials: &sums,
        plan: &device_plan,
        shape: step.shape(),
        heads: setup.heads,
        norm: None,
        rotary: model.rotary(&arrays),
        q: &q,
        keys: &keys,
        values: &values,
    };
    let recording = Recording::new(&model.device, vec![qkv_finish(&call).unwrap()]).unwrap();
    recording.replay().unwrap();
    assert!(download(&keys).iter().all(|x| *x == 0.0), "no step was written");
    for (first, second) in [(0, 1), (5, 3)] {
        let step = device_plan.step(&at(first, second), 2).unwrap();
        assert_eq!(step.shape(), call.shape);
        device_plan.write(&step).unwrap();
        keys.clear().unwrap();
        recording.replay().unwrap();
        let expected = model.run(&sums, &at(first, second), 3, 2);
        let expected: Vec<f32> = expected.keys.iter().map(|&x| if x == OLD { 0.0 } else { x }).collect();
        assert_eq!(download(&keys), expected, "positions {first} and {second}");
    }
    device_plan.write(&device_plan.step(&at(0, 1), 3).unwrap()).unwrap();
    keys.clear().unwrap();
    recording.replay().unwrap();
    assert!(download(&keys).iter().all(|x| *x == 0.0), "the step has another shape");
}

#[test]
fn what_does_not_fit_is_refused() {
    let setup = Setup { heads: shape(2, 1, 16), half: 8, is_normed: true, element: ElementType::F16 };
    let model = Model::new(setup, Order::Forward, 8);
    let zeros = |element, len| Array::zeros(&model.device, element, len).unwrap();
    let sums = PartialSums { sums: zeros(ElementType::F32, 64), num_splits: 1, bias: None };
    let plan = AttentionPlan::new(vec![vec![2, 0]], vec![row(0, 3, 7)], 4).unwrap();
    let device_plan = DevicePlan::new(&model.device, model.limits(2, 3, 4)).unwrap();
    let shape_of_step = device_plan.step(&plan, 1).unwrap().shape();
    let (arrays, q, cache) = (model.arrays(), zeros(ElementType::F16, 32), zeros(ElementType::F16, 192));
    let good = QkvFinish {
        partials: &sums,
        plan: &device_plan,
        shape: shape_of_step,
        heads: setup.heads,
        norm: model.norm(&arrays),
        rotary: model.rotary(&arrays),
        q: &q,
        keys: &cache,
        values: &cache,
    };
    assert!(qkv_finish(&good).is_ok());
    let refused = |call: QkvFinish<'_>| qkv_finish(&call).unwrap_err();
    let (short, other) = (zeros(ElementType::F16, 191), zeros(ElementType::BF16, 192));
    assert!(matches!(refused(QkvFinish { keys: &short, ..good }), KernelError::Length { what: "keys", .. }));
    assert!(matches!(refused(QkvFinish { values: &other, ..good }), KernelError::Element { what: "values", .. }));
    assert!(matches!(refused(QkvFinish { q: &arrays[0], ..good }), KernelError::NoKernelFor { what: "q", .. }));
    let heads = |heads| QkvFinish { heads, ..good };
    assert!(matches!(refused(heads(shape(2, 1, 12))), KernelError::NoKernelFor { what: "head_dim", .. }));
    assert!(matches!(refused(heads(shape(2, 1, 264))), KernelError::NoKernelFor { what: "head_dim", .. }));
    assert!(matches!(refused(heads(shape(3, 1, 16))), KernelError::HeadGroups { .. }));
    let rotary = Rotary { cos: &arrays[2], sin: &arrays[3], half: 9 };
    assert!(matches!(refused(QkvFinish { rotary: Some(rotary), ..good }), KernelError::OutOfRange { .. }));
    let rotary = Rotary { cos: &arrays[0], sin: &arrays[3], half: 8 };
    assert!(matches!(refused(QkvFinish { rotary: Some(rotary), ..good }), KernelError::Length { what: "cos", .. }));

    let step = |pages: Vec<u32>, rows, page_len, num_rows| {
        device_plan.step(&AttentionPlan::new(vec![pages], rows, page_len).unwrap(), num_rows).unwrap_err()
    };
    let late = vec![row(0, 8, 1)];
    assert!(matches!(step(vec![0, 1, 2], late, 4, 1), KernelError::OutOfRange { what: "position", .. }));
    assert!(matches!(step(vec![0, 1, 2], vec![row(0, 0, 9)], 4, 1), KernelError::OutOfRange { .. }));
    assert!(matches!(step(vec![3], vec![row(0, 0, 1)], 4, 1), KernelError::OutOfRange { what: "page", .. }));
    assert!(matches!(step(vec![2], vec![row(0, 0, 1)], 5, 1), KernelError::Length { what: "page", .. }));
    assert!(matches!(step(vec![2], vec![row(0, 0, 1); 2], 4, 1), KernelError::OutOfRange { what: "row", .. }));
    assert!(matches!(step(vec![2], vec![row(0, 0, 1)], 4, 3), KernelError::OutOfRange { .. }));
    assert!(matches!(step(vec![0; 7], vec![row(0, 0, 1)], 4, 1), KernelError::Length { expected: 6, got: 7, .. }));
}
