//! A row's result depends on its queries and on what it sees, on nothing else.

use device_tests::Order;
use kernels::{AttentionPlan, device::ElementType};

use crate::{
    case::{Case, shape},
    common::{HALVES, ORDERS, Random, bits, row, skipped},
    parity::mixed,
};

/// Bits of the outputs of one row.
fn of_row(case: &Case, outputs: &[f32], row: usize) -> Vec<u32> {
    bits(&outputs[row * case.width()..][..case.width()])
}

/// Rows of whole tiles have the bits that they have alone, in a split tile.
#[test]
fn a_row_of_many_has_the_bits_that_it_has_alone() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for (heads, len, num_rows) in
            [(shape(8, 1, 64), 300, 33), (shape(6, 1, 128), 700, 43), (shape(1, 1, 80), 330, 256)]
        {
            let case = Case::causal((heads, element), len, num_rows);
            let all = case.run();
            for row in (0..num_rows).step_by(7).chain([num_rows - 1]) {
                let alone = case.some_rows(&[row]).run();
                assert_eq!(bits(&alone), of_row(&case, &all, row), "{element}, {heads:?}, row {row}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    if skipped() {
        return;
    }
    let case = mixed(ElementType::F16);
    let all = case.run();
    let num_rows = case.plan.num_rows();
    let mut random = Random(4);
    for _ in 0..6 {
        let count = 1 + random.below(num_rows);
        let chosen: Vec<usize> = random.shuffled(num_rows)[..count].iter().map(|&row| row as usize).collect();
        let some = case.some_rows(&chosen);
        let found = some.run_in(Order::Shuffled, count + random.below(3));
        for (at, &row) in chosen.iter().enumerate() {
            assert_eq!(of_row(&some, &found, at), of_row(&case, &all, row), "row {row} among {chosen:?}");
        }
    }
}

#[test]
fn the_order_of_threads_does_not_matter() {
    if skipped() {
        return;
    }
    for element in HALVES {
        let found = ORDERS.map(|order| bits(&mixed(element).run_in(order, mixed(element).plan.num_rows())));
        assert!(found.iter().all(|bits| *bits == found[0]));
    }
}

/// Where the pages lie does not matter, nor how long they are.
#[test]
fn pages_do_not_matter() {
    if skipped() {
        return;
    }
    let case = Case::causal((shape(4, 2, 32), ElementType::BF16), 270, 20);
    let expected = case.run();
    let own = case.plan.rows()[0];
    for page_len in [1, 7, 64, 300] {
        let num_pages = 270usize.div_ceil(page_len);
        let table = Random(page_len as u64).shuffled(num_pages);
        let plan = AttentionPlan::new(vec![table], case.plan.rows().to_vec(), page_len).unwrap();
        let slots = num_pages * 2 * page_len * 32;
        let (keys, values) = (vec![f32::NAN; slots], vec![f32::NAN; slots]);
        let mut moved = Case { plan, num_pages, keys, values, ..case.clone() };
        for position in 0..270 {
            for kv_head in 0..2 {
                let (from, to) = (case.slot(&own, position, kv_head) * 32, moved.slot(&own, position, kv_head) * 32);
                moved.keys[to..][..32].copy_from_slice(&case.keys[from..][..32]);
                moved.values[to..][..32].copy_from_slice(&case.values[from..][..32]);
            }
        }
        assert_eq!(bits(&moved.run()), bits(&expected), "pages of {page_len}");
    }
}

/// Slots that no row sees hold anything.
#[test]
fn slots_that_nobody_sees_do_not_matter() {
    if skipped() {
        return;
    }
    for element in HALVES {
        let case = mixed(element);
        let mut seen = vec![false; case.keys.len() / case.heads.head_dim];
        for row in case.plan.rows() {
            for position in 0..row.visible_end {
                (0..case.heads.num_kv_heads).for_each(|kv_head| seen[case.slot(row, position, kv_head)] = true);
            }
        }
        assert!(seen.contains(&false));
        let expected = bits(&case.run());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 6e4] {
            let mut other = case.clone();
            for (slot, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
                other.keys[slot * case.heads.head_dim..][..case.heads.head_dim].fill(bad);
                other.values[slot * case.heads.head_dim..][..case.heads.head_dim].fill(bad);
            }
            assert_eq!(bits(&other.run()), expected, "{element}, {bad}");
        }
    }
}

/// A value that is not finite reaches the rows that see it, in its feature, and no other row of the tile.
#[test]
fn bad_values_reach_those_who_see_them() {
    if skipped() {
        return;
    }
    for (heads, num_rows) in [(shape(2, 1, 64), 20), (shape(16, 1, 64), 40)] {
        let case = Case::causal((heads, ElementType::F16), 300, num_rows);
        let (own, clean) = (case.plan.rows()[0], case.run());
        for (bad, position) in
            [(f32::NAN, 299), (f32::INFINITY, 290), (f32::NEG_INFINITY, 300 - num_rows), (f32::NAN, 9)]
        {
            let (mut other, feature) = (case.clone(), 37);
            other.values[case.slot(&own, position, 0) * 64 + feature] = bad;
            let found = other.run();
            for (index, row) in case.plan.rows().iter().enumerate() {
                for at in index * case.width()..(index + 1) * case.width() {
                    let reached = position < row.visible_end && at % 64 == feature;
                    let same = found[at].to_bits() == clean[at].to_bits();
                    assert!(if reached { found[at].is_nan() } else { same }, "{bad} at {position}, row {index}, {at}");
                }
            }
            for index in [0, num_rows - 1] {
                let alone = other.some_rows(&[index]).run();
                assert_eq!(bits(&alone), of_row(&case, &found, index), "alone, {bad} at {position}");
            }
        }
        // A key that is not a number takes the whole row.
        let mut other = case.clone();
        other.keys[case.slot(&own, 295, 0) * 64] = f32::NAN;
        let found = other.run();
        for (index, row) in case.plan.rows().iter().enumerate() {
            let found = of_row(&case, &found, index);
            let is_nan = found.iter().all(|bits| f32::from_bits(*bits).is_nan());
            assert!(if row.visible_end > 295 { is_nan } else { found == of_row(&case, &clean, index) }, "row {index}");
        }
    }
}

/// One key: the result is its value. Equal keys: the mean.
#[test]
fn simple_inputs_have_simple_outputs() {
    if skipped() {
        return;
    }
    let case = Case::causal((shape(2, 2, 16), ElementType::F16), 1, 1);
    let own = case.plan.rows()[0];
    let expected: Vec<f32> =
        (0..2).flat_map(|kv_head| case.values[case.slot(&own, 0, kv_head) * 16..][..16].to_vec()).collect();
    assert_eq!(case.run(), expected);

    let mut case = Case::causal((shape(1, 1, 16), ElementType::BF16), 512, 1);
    case.keys.fill(0.5);
    for position in 0..512 {
        let at = case.slot(&row(0, 511, 512), position, 0) * 16;
        case.values[at..][..16].fill((position % 2) as f32);
    }
    assert_eq!(case.run(), [0.5; 16]);
}
