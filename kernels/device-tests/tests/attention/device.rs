//! Recordings, and what is refused.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use kernels::{
    AttentionPlan, KernelError,
    device::{Array, Attention, Device, ElementType, HeadShape, PlanShape, Recording, attention, run},
};

use crate::{
    case::{Case, Loaded, shape},
    common::{bits, device, row, skipped, upload},
};

/// One recording for each shape serves steps with other lengths, tables and rows.
#[test]
fn recordings_follow_the_plan() {
    if skipped() {
        return;
    }
    let device = device(Order::Shuffled);
    let case = Case::causal((shape(4, 2, 32), ElementType::F16), 600, 3);
    let pages = case.plan.pages(&case.plan.rows()[0]).to_vec();
    let reversed: Vec<u32> = pages.iter().rev().copied().collect();
    let step = |tables: Vec<Vec<u32>>, rows| Case {
        plan: AttentionPlan::new(tables, rows, case.plan.page_len()).unwrap(),
        ..case.clone()
    };
    let long = step(vec![pages.clone()], vec![row(0, 597, 598), row(0, 598, 599), row(0, 599, 600)]);
    let others = [
        step(vec![reversed.clone(), pages.clone()], vec![row(0, 520, 521), row(0, 521, 600), row(1, 0, 1)]),
        step(vec![reversed.clone()], vec![row(0, 0, 1), row(0, 1, 513), row(0, 2, 3)]),
        step(vec![pages, reversed], vec![row(1, 599, 600), row(1, 598, 2), row(0, 3, 4)]),
    ];
    let loaded = Loaded::new(&long, &device, 4);
    let shape = loaded.plan.step(&long.plan, 4).unwrap().shape();
    assert_eq!((shape.num_rows(), shape.split_tiles(), shape.whole_tiles(), shape.num_splits()), (4, 1, 0, 4));
    let mut recordings: Vec<(PlanShape, Recording)> = Vec::new();
    for case in others.iter().chain([&long]) {
        let step = loaded.plan.step(&case.plan, 4).unwrap();
        if !recordings.iter().any(|(shape, ..)| *shape == step.shape()) {
            let work = loaded.work(case, step.shape());
            let launches = attention(&loaded.call(case, &work, step.shape())).unwrap();
            recordings.push((step.shape(), Recording::new(&device, launches).unwrap()));
        }
        let (_, recording) = recordings.iter().find(|(shape, _)| *shape == step.shape()).unwrap();
        loaded.plan.write(&step).unwrap();
        upload(&device, &vec![f32::NAN; loaded.output.len()], case.element)
            .read::<half::f16>()
            .and_then(|blank| loaded.output.write(0, &blank))
            .unwrap();
        recording.replay().unwrap();
        assert_eq!(bits(&loaded.outputs(case)), bits(&case.run()));
    }
    assert_eq!(recordings.len(), 2, "one split tile, or two");

    // The step that is held has another shape.
    let (_, other) = &recordings[0];
    loaded.output.clear().unwrap();
    other.replay().unwrap();
    assert!(loaded.output.read::<half::f16>().unwrap().iter().all(|x| x.to_bits() == 0));
}

/// Numbers of tiles and splits are rounded up, never past what there can be.
#[test]
fn shapes_are_few() {
    let device = device(Order::Forward);
    let case = Case::causal((shape(4, 1, 32), ElementType::F16), 2000, 70);
    let loaded = Loaded::new(&case, &device, 200);
    let shape_of = |num_rows: usize, len: usize, filled: usize| {
        let rows = (len - num_rows..len).map(|position| row(0, position, position + 1)).collect();
        let plan = AttentionPlan::new(vec![case.plan.pages(&row(0, 0, 1)).to_vec()], rows, 24).unwrap();
        let shape = loaded.plan.step(&plan, filled).unwrap().shape();
        [shape.num_rows(), shape.split_tiles(), shape.whole_tiles(), shape.num_splits()]
    };
    assert_eq!(shape_of(1, 1, 1), [1, 1, 0, 1]);
    assert_eq!(shape_of(3, 1300, 3), [3, 1, 0, 8]);
    assert_eq!(shape_of(10, 256, 10), [10, 4, 0, 1]);
    assert_eq!(shape_of(10, 257, 16), [16, 4, 0, 2]);
    assert_eq!(shape_of(63, 513, 63), [63, 16, 0, 4]);
    assert_eq!(shape_of(64, 513, 64), [64, 0, 4, 1]);
    assert_eq!(shape_of(150, 1999, 200), [200, 0, 16, 1]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device(Order::Forward);
    let case = Case::causal((shape(4, 2, 32), ElementType::BF16), 300, 2);
    let loaded = Loaded::new(&case, &device, 2);
    let shape_of_step = loaded.plan.step(&case.plan, 2).unwrap().shape();
    let other = Loaded::new(&case, &device, 3);
    let foreign = other.plan.step(&case.plan, 2).unwrap();
    assert!(matches!(loaded.plan.write(&foreign), Err(KernelError::ForeignStep)));
    let work = loaded.work(&case, shape_of_step);
    let good = loaded.call(&case, &work, shape_of_step);
    assert_eq!(attention(&good).unwrap().len(), 2);
    let refused = |call: Attention<'_>| attention(&call).unwrap_err();
    let heads = |num_heads, num_kv_heads, head_dim| Attention {
        heads: HeadShape { num_heads, num_kv_heads, head_dim },
        ..good
    };
    for head_dim in [0, 4, 36, 136, 256] {
        let error = refused(heads(4, 2, head_dim));
        assert!(matches!(&error, KernelError::NoKernelFor { what: "head_dim", .. }), "{error}");
    }
    assert!(matches!(refused(heads(4, 4, 32)), KernelError::HeadGroups { heads: 4, kv_heads: 4 }));
    assert!(matches!(refused(heads(0, 0, 32)), KernelError::HeadGroups { .. }));
    assert!(matches!(refused(heads(8, 4, 32)), KernelError::Length { what: "q", .. }));
    assert!(matches!(refused(Attention { scale: f32::NAN, ..good }), KernelError::Domain { what: "scale", .. }));
    let half = Array::zeros(&device, ElementType::F16, loaded.keys.len()).unwrap();
    assert!(matches!(refused(Attention { keys: &half, ..good }), KernelError::Element { what: "keys", .. }));
    assert!(matches!(refused(Attention { q: &work, ..good }), KernelError::NoKernelFor { what: "q", .. }));
    let short = loaded.values.slice(0..loaded.values.len() - 1).unwrap();
    assert!(matches!(refused(Attention { values: &short, ..good }), KernelError::Length { what: "values", .. }));
    let shifted = loaded.output.slice(1..loaded.output.len()).unwrap();
    assert!(matches!(refused(Attention { output: &shifted, ..good }), KernelError::Misaligned { what: "output", .. }));
    let short = loaded.output.slice(0..2 * 128 - 1).unwrap();
    assert!(matches!(refused(Attention { output: &short, ..good }), KernelError::Length { what: "output", .. }));
    let short = work.slice(0..work.len() - 1).unwrap();
    assert!(matches!(refused(Attention { records: &short, ..good }), KernelError::Length { what: "records", .. }));
}

/// Turing has no matrix step in bf16.
#[test]
fn turing_takes_fp16_alone() {
    let device: Arc<dyn Device> = HostDevice::with_capability(1 << 28, Order::Forward, (7, 5));
    for (element, is_fine) in [(ElementType::F16, true), (ElementType::BF16, false)] {
        let case = Case::causal((shape(2, 1, 32), element), 5, 1);
        let loaded = Loaded::new(&case, &device, 1);
        let step = loaded.plan.step(&case.plan, 1).unwrap();
        let work = loaded.work(&case, step.shape());
        let launches = attention(&loaded.call(&case, &work, step.shape()));
        assert_eq!(launches.is_ok(), is_fine, "{launches:?}");
        if let (Ok(launches), false) = (launches, skipped()) {
            loaded.plan.write(&step).unwrap();
            run(&*device, &launches).unwrap();
        }
    }
}
