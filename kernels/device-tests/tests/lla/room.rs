//! Steps in a room: the same bits as calls of their own, whatever else the room holds or has held.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use half::{bf16, f16};
use kernels::{
    KernelError, LlaPlan, LlaRow, LlaSolver, Ridge,
    device::{
        Array, Device, ElementType, LlaCall, LlaLimits, LlaRoom, LlaRounds, LlaStepShape, LlaUploadedRidge, PlanLimits,
        Recording, run,
    },
    reference::LlaShape,
};

use crate::{
    case::{Case, Way, bits, shape},
    skipped,
};

const SHAPE: LlaShape = shape(4, 2, 24, 24);
/// 96 values, and 32 zeros.
const PADDED: usize = 128;
const RIDGES: [f32; 4] = [0.5, 0.02, 3.0, 0.1];
const NUM_PAGES: usize = 48;
const PAGE_LEN: usize = 8;
const LIMITS: LlaLimits = LlaLimits {
    plan: PlanLimits {
        max_rows: 24,
        max_tables: 8,
        max_pages: 60,
        max_positions: 300,
        num_pages: NUM_PAGES,
        page_len: PAGE_LEN,
        group: 2,
    },
    shape: SHAPE,
    most_records: 1 << 20,
};
const SOLVER: LlaSolver = LlaSolver { tolerance: 1e-4, max_iterations: 64 };

/// `(table, visible_start, visible_end)` of rows over tables of pages in an order that no formula would guess.
fn case(rows: &[(usize, usize, usize)], seed: u64) -> Case {
    let tables = vec![(0..38).map(|i| i * 11 % 38).collect(), vec![41, 39, 45, 40], vec![47, 38, 42]];
    let row = |&(table, visible_start, visible_end)| LlaRow { table, visible_start, visible_end };
    let plan = LlaPlan::new(tables, rows.iter().map(row).collect(), PAGE_LEN).unwrap();
    let mut case = Case::new(SHAPE, plan, NUM_PAGES, seed);
    case.ridge = RIDGES.repeat(rows.len());
    case.rounds = Some(LlaRounds::from(SOLVER));
    case
}

/// Decoded rows of two sequences, a block of a third, a window.
fn mixed() -> Case {
    let block = (9..15).map(|end| (2, 0, end));
    case(&[(0, 0, 290), (1, 0, 31), (1, 3, 32)].into_iter().chain(block).collect::<Vec<_>>(), 200)
}

fn upload(device: &Arc<dyn Device>, element: ElementType, values: &[f32]) -> Array {
    match element {
        ElementType::F16 => {
            Array::from_slice(device, &values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>()).unwrap()
        }
        ElementType::BF16 => {
            Array::from_slice(device, &values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()).unwrap()
        }
        other => panic!("{other} is no type of the room"),
    }
}

fn download(array: &Array) -> Vec<f32> {
    match array.element() {
        ElementType::F16 => array.read::<f16>().unwrap().iter().map(|x| x.to_f32()).collect(),
        _ => array.read::<bf16>().unwrap().iter().map(|x| x.to_f32()).collect(),
    }
}

/// A room and the tensors of its calls.
struct Subject {
    host: Arc<HostDevice>,
    device: Arc<dyn Device>,
    element: ElementType,
    room: LlaRoom,
    q: Array,
    caches: [Array; 2],
    output: Array,
    ridge: LlaUploadedRidge,
}

impl Subject {
    /// The caches are those of `case` for good.
    fn new(limits: LlaLimits, element: ElementType, case: &Case) -> Self {
        let host = HostDevice::new(1 << 28, Order::Shuffled);
        let device: Arc<dyn Device> = host.clone();
        let max_rows = limits.plan.max_rows;
        Self {
            room: LlaRoom::new(&device, limits).unwrap(),
            q: Array::zeros(&device, element, max_rows * 96).unwrap(),
            caches: [&case.keys, &case.values].map(|cache| upload(&device, element, cache)),
            output: upload(&device, element, &vec![f32::NAN; max_rows * PADDED]),
            ridge: LlaUploadedRidge::new(&device, Ridge::PerHead(&RIDGES)).unwrap(),
            host,
            device,
            element,
        }
    }

    fn write(&self, case: &Case, num_rows: usize) -> LlaStepShape {
        let step = self.room.step(&case.plan, num_rows).unwrap();
        self.room.write(&step).unwrap();
        let q: Vec<u8> = match self.element {
            ElementType::F16 => case.q.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            _ => case.q.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        };
        self.q.write_bytes(0, &q).unwrap();
        step.shape()
    }

    fn call(&self) -> LlaCall<'_> {
        LlaCall {
            q: &self.q,
            keys: &self.caches[0],
            values: &self.caches[1],
            output: &self.output,
            ridge: &self.ridge,
            rounds: LlaRounds::from(SOLVER),
            scale: 24f32.sqrt().recip(),
        }
    }

    fn run(&self, case: &Case, num_rows: usize) -> Vec<f32> {
        let shape = self.write(case, num_rows);
        run(&*self.device, &self.room.launches(shape, &self.call()).unwrap()).unwrap();
        download(&self.output)
    }

    /// Fails unless the output is that of a call of its own, with zeros where there is nothing, and nothing past it.
    #[track_caller]
    fn check(&self, output: &[f32], case: &Case, num_rows: usize) {
        let expected = case.run(Way::Decode, self.element);
        let rows = case.plan.num_rows();
        for (row, expected) in expected.output.chunks(96).enumerate() {
            let got = &output[row * PADDED..][..PADDED];
            assert_eq!(bits(&got[..96]), bits(expected), "row {row}, {:?}", self.element);
            assert!(got[96..].iter().all(|x| x.to_bits() == 0), "padding of row {row}");
        }
        assert!(output[rows * PADDED..num_rows * PADDED].iter().all(|x| x.to_bits() == 0), "rows that only fill");
        let counters = self.room.counters().unwrap();
        assert_eq!(counters, expected.counters, "rows that only fill are not counted");
        assert!(counters.iterations > 0);
    }
}

#[test]
fn a_room_is_written_anew_each_step() {
    if skipped() {
        return;
    }
    for element in [ElementType::F16, ElementType::BF16] {
        let first = mixed();
        let subject = Subject::new(LIMITS, element, &first);
        let same_caches = |rows: &[(usize, usize, usize)], seed| {
            let other = case(rows, seed);
            Case { keys: first.keys.clone(), values: first.values.clone(), ..other }
        };
        let second = same_caches(&[(2, 0, 5), (0, 100, 260), (0, 0, 1)], 201);
        for (case, num_rows) in [(&first, 9), (&second, 8), (&first, 16)] {
            subject.output.write_bytes(0, &vec![0xff; subject.output.bytes()]).unwrap();
            let output = subject.run(case, num_rows);
            subject.check(&output, case, num_rows);
            assert!(output[num_rows * PADDED..].iter().all(|x| x.is_nan()), "wrote past the rows of the shape");
        }
    }
}

#[test]
fn a_recording_runs_the_step_that_is_there_if_it_is_of_its_shape() {
    if skipped() {
        return;
    }
    let first = mixed();
    let subject = Subject::new(LIMITS, ElementType::F16, &first);
    let shape = subject.write(&first, 9);
    let recording = Recording::new(&subject.device, subject.room.launches(shape, &subject.call()).unwrap()).unwrap();
    recording.replay().unwrap();
    subject.check(&download(&subject.output), &first, 9);

    let mut second = case(&[(1, 2, 30), (0, 0, 270)], 202);
    (second.keys, second.values) = (first.keys, first.values);
    assert_eq!(subject.write(&second, 9), shape);
    recording.replay().unwrap();
    let output = download(&subject.output);
    subject.check(&output, &second, 9);

    // Fewer rows, and shorter ones: what lies in the arrays would not be rows.
    for (num_rows, other) in [(3, &second), (9, &case(&[(2, 0, 9)], 203))] {
        assert_ne!(subject.write(other, num_rows), shape);
        recording.replay().unwrap();
        assert_eq!(bits(&download(&subject.output)), bits(&output), "nothing is written");
        assert_eq!(subject.room.counters().unwrap().iterations, 0);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_turns() {
    if skipped() {
        return;
    }
    // A key that fp16 cannot take, which row 0 and not the last rows see; values beyond fp16 for the last.
    let mut all = mixed();
    all.keys[..24].fill(3e3);
    let values = (all.plan.rows()[8].visible_end - 1, 42 * 2 * PAGE_LEN * 24);
    all.values[values.1..][..24].fill(1e6);
    for element in [ElementType::F16, ElementType::BF16] {
        let subject = Subject::new(LIMITS, element, &all);
        let batch = subject.run(&all, 9);
        assert!(subject.room.counters().unwrap().num_wide > 0, "some are computed in f32");
        let most_records = LlaLimits { most_records: 0, ..LIMITS };
        let in_turns = Subject::new(most_records, element, &all);
        let before = in_turns.host.num_launches();
        assert_eq!(bits(&in_turns.run(&all, 9)[..9 * PADDED]), bits(&batch[..9 * PADDED]));
        // Room for one row of two splits: five launches for each.
        assert_eq!(in_turns.host.num_launches() - before, 9 * 5);
        for row in 0..9 {
            let (start, end) = (all.plan.rows()[row].visible_start, all.plan.rows()[row].visible_end);
            let mut alone = case(&[(all.plan.rows()[row].table, start, end)], 0);
            alone.q = all.q[row * 96..][..96].to_vec();
            let got = subject.run(&alone, 1);
            assert_eq!(bits(&got[..PADDED]), bits(&batch[row * PADDED..][..PADDED]), "row {row}, {element:?}");
        }
    }
}

#[test]
fn a_solver_without_steps_is_counted() {
    if skipped() {
        return;
    }
    let case = mixed();
    let subject = Subject::new(LIMITS, ElementType::F16, &case);
    let shape = subject.write(&case, 16);
    let rounds = LlaRounds::from(LlaSolver { max_iterations: 0, ..SOLVER });
    let launches = subject.room.launches(shape, &LlaCall { rounds, ..subject.call() }).unwrap();
    run(&*subject.device, &launches).unwrap();
    let counters = subject.room.counters().unwrap();
    assert_eq!((counters.num_capped, counters.iterations, counters.num_fallbacks), (9 * 4, 0, 0));
    run(&*subject.device, &launches).unwrap();
    assert_eq!(subject.room.counters().unwrap().num_capped, 2 * 9 * 4, "layers add up");
    subject.write(&case, 16);
    assert_eq!(subject.room.counters().unwrap().num_capped, 0);
}

#[test]
fn a_room_takes_the_memory_that_it_says() {
    for most_records in [0, 100_000, usize::MAX] {
        let device: Arc<dyn Device> = HostDevice::new(1 << 30, Order::Forward);
        let limits = LlaLimits { most_records, ..LIMITS };
        let free = device.free_bytes().unwrap();
        let room = LlaRoom::new(&device, limits).unwrap();
        let taken = free - device.free_bytes().unwrap();
        let bytes = room.limits().bytes().unwrap();
        // Each array may end before the next multiple of 256.
        assert!(bytes >= taken && bytes < taken + 4 * 256, "{bytes} for {taken}");
    }
}

#[test]
fn what_exceeds_a_room_is_refused() {
    let device: Arc<dyn Device> = HostDevice::new(1 << 28, Order::Forward);
    let room = LlaRoom::new(&device, LIMITS).unwrap();
    let plan_of = |tables: Vec<Vec<u32>>, rows: &[(usize, usize)]| {
        let row = |&(table, visible_end)| LlaRow { table, visible_start: 0, visible_end };
        LlaPlan::new(tables, rows.iter().map(row).collect(), PAGE_LEN).unwrap()
    };
    let long: Vec<u32> = (0..38).collect();
    for (plan, num_rows, what) in [
        (plan_of(vec![vec![0]], &[(0, 8)]), 25, "number of rows 25"),
        (plan_of(vec![vec![0]], &[(0, 7), (0, 8)]), 1, "row 1 is out of range"),
        (plan_of(vec![long.clone()], &[(0, 301)]), 1, "visible position 301"),
        (plan_of(vec![vec![48]], &[(0, 8)]), 1, "page 48"),
        (plan_of(vec![long.clone(), long.clone()], &[(0, 8), (1, 8)]), 2, "must have 60 elements, got 76"),
        (LlaPlan::new(vec![vec![0]], Vec::new(), 4).unwrap(), 1, "must have 8 elements, got 4"),
    ] {
        let refused = room.step(&plan, num_rows).unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
    // Tables that no row reads take no room.
    room.step(&plan_of(vec![long.clone(), long], &[(1, 8)]), 1).unwrap();

    for (limits, what) in [
        (LlaLimits { shape: shape(4, 2, 129, 24), ..LIMITS }, "head size 129"),
        (LlaLimits { shape: shape(4, 1, 24, 24), ..LIMITS }, "divide"),
        (
            LlaLimits { plan: PlanLimits { max_rows: 0, max_tables: 8, ..LIMITS.plan }, ..LIMITS },
            "max_rows must not be zero",
        ),
        (LlaLimits { plan: PlanLimits { max_positions: 1 << 30, ..LIMITS.plan }, ..LIMITS }, "split"),
        (LlaLimits { plan: PlanLimits { num_pages: 1 << 30, ..LIMITS.plan }, ..LIMITS }, "overflow"),
    ] {
        let refused = LlaRoom::new(&device, limits).unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
        assert_eq!(limits.bytes().unwrap_err().to_string(), refused);
    }
    let other = LlaRoom::new(&device, LlaLimits { most_records: 0, ..LIMITS }).unwrap();
    let step = other.step(&plan_of(vec![vec![0]], &[(0, 8)]), 1).unwrap();
    assert!(matches!(room.write(&step).unwrap_err(), KernelError::ForeignStep));
}

#[test]
fn arrays_that_are_not_those_of_the_room_are_refused() {
    let case = mixed();
    let subject = Subject::new(LIMITS, ElementType::F16, &case);
    let shape = subject.write(&case, 9);
    let refused = |call: LlaCall<'_>| subject.room.launches(shape, &call).unwrap_err().to_string();
    let short = subject.output.slice(0..9 * PADDED - 1).unwrap();
    let call = subject.call();
    assert!(refused(LlaCall { output: &short, ..call }).contains("`output` must have 1152 elements, got 1151"));
    let other = Array::new(&subject.device, ElementType::BF16, subject.caches[0].len()).unwrap();
    assert!(refused(LlaCall { keys: &other, ..call }).contains("keys"));
    let wide = Array::new(&subject.device, ElementType::F32, subject.q.len()).unwrap();
    assert!(refused(LlaCall { q: &wide, ..call }).contains("f16, bf16"));
    assert!(refused(LlaCall { scale: f32::NAN, ..call }).contains("scale"));
    let rounds = LlaRounds { tolerance: -1.0, max_steps: 1, num_rounds: 1 };
    assert!(refused(LlaCall { rounds, ..call }).contains("tolerance"));
    let ridge = LlaUploadedRidge::new(&subject.device, Ridge::PerHead(&RIDGES[..3])).unwrap();
    assert!(refused(LlaCall { ridge: &ridge, ..call }).contains("ridge"));
    let ridge = LlaUploadedRidge::new(&subject.device, Ridge::PerRow(&RIDGES)).unwrap();
    assert!(refused(LlaCall { ridge: &ridge, ..call }).contains("one for each row and head"));
    let large = LlaRoom::new(
        &subject.device,
        LlaLimits { plan: PlanLimits { max_rows: 30, max_tables: 8, max_positions: 600, ..LIMITS.plan }, ..LIMITS },
    );
    let large = large.unwrap();
    let wide_shape = large.step(&case.plan, 25).unwrap().shape();
    assert!(subject.room.launches(wide_shape, &call).unwrap_err().to_string().contains("number of rows 25"));
}
