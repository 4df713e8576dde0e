//! Calls as a busy engine makes them: several block tables in any page order, rows of any range in any order, rows that
//! see nothing, each head with its ridge.

use kernels::{LlaPlan, LlaRow};

use super::*;

const LENGTHS: [usize; 14] = [1, 2, 15, 16, 17, 63, 64, 65, 130, 400, 1023, 1024, 1025, 1400];

fn one_of<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len())]
}

/// A table of pages that nobody else has, in random order.
fn table(random: &mut Random, first_page: usize, num_pages: usize) -> Vec<u32> {
    let mut pages: Vec<u32> = (first_page..first_page + num_pages).map(|page| page as u32).collect();
    for last in (1..pages.len()).rev() {
        pages.swap(last, random.below(last + 1));
    }
    pages
}

fn any_case(seed: u64) -> Case {
    let mut random = Random(seed.wrapping_mul(7919) + 13);
    let (num_kv_heads, group) = (1 + random.below(3), 1 + random.below(4));
    let key_dim = one_of(&mut random, &[1, 3, 8, 15, 16, 17, 24, 31, 32, 40]);
    let value_dim = one_of(&mut random, &[1, 2, 7, 16, 19, 32, 33, 48]);
    let page_len = one_of(&mut random, &[1, 3, 8, 16, 32, 100, 1500]);
    let lengths: Vec<usize> = (0..1 + random.below(4)).map(|_| one_of(&mut random, &LENGTHS)).collect();
    let mut num_pages = 0;
    let mut tables = Vec::new();
    for len in &lengths {
        tables.push(table(&mut random, num_pages, len.div_ceil(page_len)));
        num_pages += len.div_ceil(page_len);
    }
    let mut current = 0;
    let mut rows = Vec::new();
    for _ in 0..1 + random.below(24) {
        if random.below(4) == 0 {
            current = random.below(lengths.len());
        }
        let len = lengths[current];
        let end = 1 + random.below(len);
        let (start, end) = match random.below(6) {
            0 | 1 => (0, end),
            2 | 3 => (end.saturating_sub(1 + random.below(70)), end),
            4 => (random.below(end), end),
            _ => (end - 1, end - 1),
        };
        rows.push(LlaRow { table: current, visible_start: start, visible_end: end });
    }
    let plan = LlaPlan::new(tables, rows, page_len).unwrap();
    let mut case = Case::new(shape(num_kv_heads * group, num_kv_heads, key_dim, value_dim), plan, num_pages, seed);
    for ridge in &mut case.ridge {
        *ridge = one_of(&mut random, &[0.2, 1.0, 5.0, 100.0]);
    }
    case.scale *= one_of(&mut random, &[1.0, 1.0, 3.0, 0.0, -1.0]);
    case
}

#[test]
fn any_plan_matches_the_reference() {
    for seed in 0..120 {
        let case = any_case(seed);
        let dim = case.shape.value_dim;
        let (got, expected) = (wide(&case.outputs()), reference_outputs(&case.reference()));
        // Against outputs of the usual size: a row may happen to sum to nearly nothing.
        let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let largest = expected.chunks_exact(dim).map(norm).fold(0.0, f64::max);
        for (row, (got, expected)) in got.chunks_exact(dim).zip(expected.chunks_exact(dim)).enumerate() {
            let difference: Vec<f64> = got.iter().zip(expected).map(|(got, expected)| got - expected).collect();
            let error = norm(&difference) / norm(expected).max(0.05 * largest).max(f64::MIN_POSITIVE);
            assert_within(error, 3e-4, &format!("seed {seed}, row and head {row} of {:?}", case.plan.rows()));
        }
    }
}
