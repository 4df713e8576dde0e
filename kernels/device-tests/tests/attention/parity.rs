//! The reference, at every size of heads and around every border of tiles, splits and pages.

use kernels::device::ElementType;

use crate::{
    case::{Case, shape},
    common::{HALVES, Random, plan, row, skipped},
};

const LENS: [usize; 12] = [1, 15, 63, 64, 65, 128, 255, 256, 257, 320, 600, 4000];

#[test]
fn one_row_matches_at_every_length() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for len in LENS {
            let case = Case::causal((shape(4, 2, 64), element), len, 1);
            case.check(&case.run(), &format!("{element}, {len} positions"));
        }
    }
}

#[test]
fn every_size_of_heads_matches() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for head_dim in [8, 24, 32, 40, 64, 72, 80, 88, 96, 104, 120, 128] {
            // Split tiles, then whole tiles.
            for (heads, num_rows) in [(shape(6, 2, head_dim), 3), (shape(16, 1, head_dim), 17)] {
                let case = Case::causal((heads, element), 290, num_rows);
                case.check(&case.run(), &format!("{element}, {heads:?}"));
            }
        }
    }
}

#[test]
fn many_rows_match_from_the_start_and_after_a_prefix() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for (heads, len, num_rows) in [
            (shape(8, 1, 64), 32, 32),
            (shape(8, 1, 64), 65, 65),
            (shape(8, 2, 64), 64, 64),
            (shape(8, 2, 64), 333, 65),
            (shape(1, 1, 32), 300, 300),
            (shape(1, 1, 32), 513, 257),
            (shape(7, 1, 128), 260, 37),
        ] {
            let case = Case::causal((heads, element), len, num_rows);
            case.check(&case.run(), &format!("{element}, {heads:?}, {num_rows} rows of {len}"));
        }
    }
}

/// Long and short sequences, blocks that see themselves whole, rows of one position, pages that two sequences share.
#[test]
fn mixed_batches_match() {
    if skipped() {
        return;
    }
    for element in HALVES {
        let case = mixed(element);
        case.check(&case.run(), &format!("{element}"));
    }
}

pub(crate) fn mixed(element: ElementType) -> Case {
    let lens = [400, 70, 1, 130, 300];
    let mut rows = vec![row(2, 0, 1), row(1, 69, 70)];
    // A chunk of whole tiles in blocks of eight.
    rows.extend((100..140).map(|position| row(0, position, (position / 8 + 1) * 8)));
    // A block of drafts.
    rows.extend((118..130).map(|position| row(3, position, 130)));
    // Rows in no order.
    rows.extend([row(4, 299, 300), row(4, 7, 8), row(1, 3, 64), row(4, 0, 1), row(4, 255, 256), row(4, 256, 257)]);
    let (made, num_pages) = plan(&mut Random(9), &lens, rows, 16);
    let mut tables: Vec<Vec<u32>> =
        lens.iter().enumerate().map(|(table, _)| made.pages(&row(table, 0, 1)).to_vec()).collect();
    let shared = tables[0][..6].to_vec();
    tables[4][..6].copy_from_slice(&shared);
    let plan = kernels::AttentionPlan::new(tables, made.rows().to_vec(), 16).unwrap();
    Case::new((shape(16, 2, 40), element), (plan, num_pages), 5)
}
