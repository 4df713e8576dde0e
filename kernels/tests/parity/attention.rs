use candle_core::{Device, Tensor};
use kernels::{AttentionPlan, KernelError, PlanRow, attention, reference, write_kv};

use crate::{BATCHES, Random, assert_close, bits, on_every_level};

const SCALE: f32 = 0.17;

/// Caches and queries of one test, with page tables in random order.
struct Case {
    shape: reference::HeadShape,
    page_len: usize,
    num_pages: usize,
    tables: Vec<Vec<u32>>,
    keys: Vec<f32>,
    values: Vec<f32>,
    random: Random,
}

impl Case {
    fn new((num_heads, num_kv_heads, head_dim): (usize, usize, usize), page_len: usize, capacities: &[usize]) -> Self {
        let mut random = Random((num_heads * 1000 + head_dim * 10 + page_len) as u64);
        let counts: Vec<usize> = capacities.iter().map(|capacity| capacity.div_ceil(page_len)).collect();
        let num_pages = counts.iter().sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..num_pages as u32).collect();
        let mut take =
            |count: usize| -> Vec<u32> { (0..count).map(|_| free.swap_remove(random.below(free.len()))).collect() };
        let tables = counts.iter().map(|&count| take(count)).collect();
        let size = num_pages * num_kv_heads * page_len * head_dim;
        let (keys, values) = (random.values(size), random.values(size));
        let shape = reference::HeadShape { num_heads, num_kv_heads, head_dim };
        Self { shape, page_len, num_pages, tables, keys, values, random }
    }

    fn plan(&self, rows: &[PlanRow]) -> AttentionPlan {
        AttentionPlan::new(self.tables.clone(), rows.to_vec(), self.page_len).unwrap()
    }

    fn cache(&self, values: &[f32]) -> Tensor {
        let shape = (self.num_pages, self.shape.num_kv_heads, self.page_len, self.shape.head_dim);
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn attend(&self, q: &[f32], rows: &[PlanRow]) -> Vec<f32> {
        let shape = (rows.len(), self.shape.num_heads, self.shape.head_dim);
        let q = Tensor::from_slice(q, shape, &Device::Cpu).unwrap();
        let (keys, values) = (self.cache(&self.keys), self.cache(&self.values));
        let out = attention(&q, &keys, &values, &self.plan(rows), SCALE).unwrap();
        assert_eq!(out.dims(), [rows.len(), self.shape.num_heads * self.shape.head_dim]);
        out.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn width(&self) -> usize {
        self.shape.num_heads * self.shape.head_dim
    }

    /// Start of a position's vector in a cache.
    fn offset(&self, table: usize, position: usize, kv_head: usize) -> usize {
        let page = self.tables[table][position / self.page_len] as usize;
        ((page * self.shape.num_kv_heads + kv_head) * self.page_len + position % self.page_len) * self.shape.head_dim
    }
}

fn row(table: usize, position: usize) -> PlanRow {
    PlanRow { table, position, visible_end: position + 1 }
}

#[test]
fn attention_matches_the_reference_at_odd_sizes() {
    for heads in [(9, 3, 64), (1, 1, 16), (2, 1, 8), (4, 4, 80), (10, 2, 33), (35, 1, 16), (3, 3, 1)] {
        for page_len in [1, 7, 16, 64] {
            let mut case = Case::new(heads, page_len, &[600, 40]);
            let ends = [1, 2, 15, 16, 17, 33, 255, 256, 257, 513, 600];
            let mut rows: Vec<PlanRow> = ends.iter().map(|end| row(0, end - 1)).collect();
            rows.extend([row(1, 39), row(1, 0), row(0, 300)]);
            // A row of a block may see past itself.
            rows.push(PlanRow { table: 1, position: 3, visible_end: 20 });
            let q = case.random.values(rows.len() * case.width());
            let expected = reference::attention(&q, (&case.keys, &case.values), &case.plan(&rows), case.shape, SCALE);
            let results = on_every_level(2, || case.attend(&q, &rows));
            for (level, out) in &results {
                // The weights sum to 1, so errors are relative to the values, which are around 1.
                assert_close(out, &expected, (1e-5, 2e-5), &format!("{level} {heads:?} pages of {page_len}"));
                assert_eq!(bits(out), bits(&results[0].1), "{level} and portable, {heads:?}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_the_threads() {
    let mut case = Case::new((9, 3, 64), 16, &[700, 90]);
    let rows: Vec<PlanRow> = (620..684).map(|position| row(0, position)).collect();
    let mut other = rows.clone();
    for (at, row) in other.iter_mut().enumerate().filter(|(at, _)| at % 3 == 1) {
        *row = PlanRow { table: 1, position: at, visible_end: at + 20 };
    }
    for rows in [rows, other] {
        let q = case.random.values(rows.len() * case.width());
        let width = case.width();
        let alone: Vec<_> = (0..rows.len()).map(|at| case.attend(&q[at * width..][..width], &rows[at..=at])).collect();
        for num_threads in [1, 2, 16] {
            for batch in BATCHES {
                for (level, out) in on_every_level(num_threads, || case.attend(&q[..batch * width], &rows[..batch])) {
                    for (at, out) in out.chunks_exact(width).enumerate() {
                        let what = format!("{level}, {num_threads} threads, row {at} of {batch}");
                        assert_eq!(bits(out), bits(&alone[at]), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_row_does_not_see_does_not_reach_it() {
    let mut case = Case::new((6, 2, 48), 16, &[300]);
    // Rows of one tile with ends apart, at the border of a vector and of a partition.
    let rows = [row(0, 4), row(0, 5), row(0, 16), row(0, 250), row(0, 256), row(0, 257)];
    let q = case.random.values(rows.len() * case.width());
    let clean = case.attend(&q, &rows);
    for seen in 0..rows.len() {
        let mut poisoned = Case {
            random: Random(0),
            tables: case.tables.clone(),
            keys: case.keys.clone(),
            values: case.values.clone(),
            ..case
        };
        for position in rows[seen].visible_end..300 {
            for kv_head in 0..2 {
                let at = poisoned.offset(0, position, kv_head);
                poisoned.keys[at..at + 48].fill(f32::NAN);
                poisoned.values[at..at + 48].fill(f32::NAN);
            }
        }
        for (level, out) in on_every_level(2, || poisoned.attend(&q, &rows)) {
            let width = poisoned.width();
            assert_eq!(bits(&out[..(seen + 1) * width]), bits(&clean[..(seen + 1) * width]), "{level}, {seen}");
            assert!(out[(seen + 1) * width..].iter().all(|value| value.is_nan()), "{level}: the poison works");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::new((2, 1, 16), 8, &[40]);
    let rows = [row(0, 39)];
    let q: Vec<f32> = case.random.values(case.width()).iter().map(|value| value * 1e3).collect();
    let expected = reference::attention(&q, (&case.keys, &case.values), &case.plan(&rows), case.shape, SCALE);
    for (level, out) in on_every_level(1, || case.attend(&q, &rows)) {
        assert_close(&out, &expected, (1e-3, 1e-3), &level.to_string());
    }
}

#[test]
fn write_kv_fills_the_positions_of_the_rows_and_no_others() {
    let mut case = Case::new((4, 2, 24), 7, &[30, 10]);
    let rows = [row(0, 29), row(1, 0), row(0, 6), row(0, 7)];
    let plan = case.plan(&rows);
    let written = case.random.values(rows.len() * 2 * 24);
    let mut expected = case.keys.clone();
    reference::write_kv(&mut expected, &written, &plan, case.shape);
    assert_eq!(expected.iter().zip(&case.keys).filter(|(a, b)| a != b).count(), written.len());
    let at = case.offset(0, 6, 1);
    assert_eq!(expected[at..at + 24], written[(2 * 2 + 1) * 24..][..24]);
    let cache = case.cache(&case.keys);
    write_kv(&cache, &Tensor::from_slice(&written, (4, 2, 24), &Device::Cpu).unwrap(), &plan).unwrap();
    assert_eq!(cache.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let plan = |row: PlanRow, page_len| AttentionPlan::new(vec![vec![0, 4]], vec![row], page_len);
    assert!(plan(row(0, 15), 8).is_ok());
    assert!(matches!(plan(row(0, 15), 0), Err(KernelError::Zero { .. })));
    assert!(matches!(plan(row(1, 0), 8), Err(KernelError::OutOfRange { what: "page table", .. })));
    assert!(matches!(plan(row(0, 16), 8), Err(KernelError::OutOfRange { what: "position", .. })));
    let blind = PlanRow { table: 0, position: 0, visible_end: 0 };
    assert!(matches!(plan(blind, 8), Err(KernelError::Zero { .. })));
    let far = PlanRow { table: 0, position: 0, visible_end: 17 };
    assert!(matches!(plan(far, 8), Err(KernelError::OutOfRange { what: "visible position", .. })));

    let tensor = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let plan = plan(row(0, 15), 8).unwrap();
    let (q, cache) = (tensor(&[1, 4, 16]), tensor(&[5, 2, 8, 16]));
    assert!(attention(&q, &cache, &cache, &plan, 1.0).is_ok());
    let small = tensor(&[4, 2, 8, 16]);
    assert!(matches!(attention(&q, &small, &small, &plan, 1.0), Err(KernelError::OutOfRange { what: "page", .. })));
    assert!(matches!(write_kv(&small, &tensor(&[1, 2, 16]), &plan), Err(KernelError::OutOfRange { .. })));
    assert!(matches!(write_kv(&cache, &tensor(&[2, 2, 16]), &plan), Err(KernelError::Shape { .. })));
    assert!(matches!(attention(&tensor(&[2, 4, 16]), &cache, &cache, &plan, 1.0), Err(KernelError::Shape { .. })));
    assert!(matches!(attention(&tensor(&[1, 3, 16]), &cache, &cache, &plan, 1.0), Err(KernelError::HeadGroups { .. })));
    let other_pages = tensor(&[5, 2, 4, 16]);
    assert!(matches!(attention(&q, &cache, &other_pages, &plan, 1.0), Err(KernelError::Shape { .. })));
}
