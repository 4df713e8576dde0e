//! A row has the same bits alone, in a chunk and in a prompt, in any cache layout, on any number of threads; and what a
//! row does not see does not reach it.

use std::num::NonZeroUsize;

use kernels::{AttentionPlan, LlaPlan, LlaRow, LlaSequence, PlanRow, reference::LlaShape};

use super::{Case, assert_finite, flat, shape};
use crate::{Random, bits, on_every_level};

/// Two sequences of one batch: a prompt from its start, and a few rows on a cache.
fn batch() -> Case {
    let sequences = [LlaSequence { position: 0, num_rows: 70 }, LlaSequence { position: 97, num_rows: 3 }];
    Case::new(shape(4, 2, 16, 8), LlaPlan::contiguous(&sequences, 100, None).unwrap(), 2, 11).with_ridge(0.1)
}

fn width(shape: LlaShape) -> usize {
    shape.num_heads * shape.value_dim
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_the_threads() {
    let case = batch();
    let expected = case.run();
    let whole = flat(&expected.output);
    let width = width(case.shape);
    let one_by_one: Vec<Vec<usize>> = (0..73).map(|row| vec![row]).collect();
    let mut mixed: Vec<usize> = (0..73).collect();
    mixed.reverse();
    mixed.swap(3, 40);
    let splits = [one_by_one, vec![(0..5).collect(), (5..69).collect(), (69..73).collect()], vec![mixed]];
    for pieces in &splits {
        for piece in pieces {
            let out = case.some_rows(piece).outputs();
            for (at, &row) in piece.iter().enumerate() {
                assert_eq!(bits(&out[at * width..][..width]), bits(&whole[row * width..][..width]), "row {row}");
            }
        }
    }
    for num_threads in [1, 2, 3, 16] {
        for (level, out) in on_every_level(num_threads, || case.run()) {
            let what = format!("{level}, {num_threads} threads");
            assert_eq!(bits(&flat(&out.output)), bits(&whole), "{what}");
            assert_eq!((out.details, out.report), (expected.details.clone(), expected.report.clone()), "{what}");
        }
    }
}

#[test]
fn threads_may_share_one_long_row() {
    // Three segments, so few queries that the threads must split them.
    let plan = LlaPlan::contiguous(&[LlaSequence { position: 2148, num_rows: 2 }], 2150, None).unwrap();
    let case = Case::new(shape(1, 1, 16, 16), plan, 1, 12);
    let expected = case.run();
    for num_threads in [1, 2, 5] {
        for (level, out) in on_every_level(num_threads, || case.run()) {
            let what = format!("{level}, {num_threads} threads");
            assert_eq!(out.details, expected.details, "{what}");
            assert_eq!(out.report, expected.report, "{what}");
        }
    }
    assert_eq!(bits(&case.some_rows(&[1]).outputs()), bits(&case.outputs()[16..]));
}

#[test]
fn paged_and_contiguous_caches_agree() {
    let case = Case::causal(shape(4, 2, 24, 20), 90, 13);
    let expected = case.outputs();
    let mut random = Random(14);
    for page_len in [1, 7, 16, 64] {
        let num_pages = 90_usize.div_ceil(page_len) + 3;
        let mut free: Vec<u32> = (0..num_pages as u32).collect();
        let table: Vec<u32> =
            (0..90_usize.div_ceil(page_len)).map(|_| free.swap_remove(random.below(free.len()))).collect();
        let spread = |from: &[f32], dim: usize| {
            let mut to = vec![f32::NAN; num_pages * 2 * page_len * dim];
            for position in 0..90 {
                for kv_head in 0..2 {
                    let page = table[position / page_len] as usize;
                    let at = ((page * 2 + kv_head) * page_len + position % page_len) * dim;
                    to[at..at + dim].copy_from_slice(&from[(kv_head * 90 + position) * dim..][..dim]);
                }
            }
            to
        };
        let (keys, values) = (spread(&case.keys, 24), spread(&case.values, 20));
        // The same rows as a plan of attention, which is how models have them.
        let rows = (0..90).map(|position| PlanRow { table: 0, position, visible_end: position + 1 }).collect();
        let attention = AttentionPlan::new(vec![table.clone()], rows, page_len).unwrap();
        let plan = LlaPlan::from_attention(&attention, None);
        let paged = Case { plan, num_pages, keys, values, ..case.clone() };
        assert_eq!(bits(&paged.outputs()), bits(&expected), "pages of {page_len}");
    }
}

#[test]
fn windows_are_ranges() {
    let window = NonZeroUsize::new(8);
    let case = Case::causal(shape(2, 1, 16, 16), 40, 15);
    let rows = (0..40).map(|position| PlanRow { table: 0, position, visible_end: position + 1 }).collect();
    let plans = [
        LlaPlan::contiguous(&[LlaSequence { position: 0, num_rows: 40 }], 40, window).unwrap(),
        LlaPlan::from_attention(&AttentionPlan::new(vec![vec![0]], rows, 40).unwrap(), window),
    ];
    let expected: Vec<LlaRow> = (0..40_usize)
        .map(|row| LlaRow { table: 0, visible_start: (row + 1).saturating_sub(8), visible_end: row + 1 })
        .collect();
    for plan in plans {
        assert_eq!(plan.rows(), expected);
        let out = Case { plan, ..case.clone() }.outputs();
        assert_finite(&out, "window");
        assert_ne!(bits(&out), bits(&case.outputs()), "the window is narrower than the sequence");
    }
}

#[test]
fn what_a_row_does_not_see_does_not_reach_it() {
    // Ranges that start and end around the borders of vectors, strips and segments, some inside others, one empty.
    let ranges = [(0, 5), (3, 17), (16, 64), (15, 65), (60, 70), (7, 7), (0, 1025), (1020, 1030), (1024, 1030)];
    let rows: Vec<LlaRow> =
        ranges.map(|(start, end)| LlaRow { table: 0, visible_start: start, visible_end: end }).into();
    let plan = LlaPlan::new(vec![vec![0]], rows.clone(), 1030).unwrap();
    let case = Case::new(shape(2, 1, 16, 8), plan, 1, 16);
    let clean = case.outputs();
    assert_finite(&clean, "clean");
    let width = width(case.shape);
    assert!(clean[5 * width..6 * width].iter().all(|value| value.to_bits() == 0), "nothing is seen");
    for poison in [f32::NAN, f32::INFINITY] {
        for (seen, row) in rows.iter().enumerate() {
            let mut poisoned = case.clone();
            for position in (0..1030).filter(|position| !(row.visible_start..row.visible_end).contains(position)) {
                poisoned.keys[position * 16..][..16].fill(poison);
                poisoned.values[position * 8..][..8].fill(poison);
            }
            for (level, out) in on_every_level(2, || poisoned.outputs()) {
                let range = seen * width..(seen + 1) * width;
                assert_eq!(bits(&out[range.clone()]), bits(&clean[range]), "{level}, {poison}, row {seen}");
                assert!(out.iter().any(|value| value.is_nan()), "{level}: the poison works");
            }
        }
    }
}
