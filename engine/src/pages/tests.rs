//! The pool against a simulated KV cache.

use std::collections::HashMap;

use models::PageId;
use proptest::prelude::*;

use super::*;

const PAGE: usize = 4;

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// A lease that holds and has published `ids`.
fn published(pool: &PagePool, ids: &[u32]) -> PageLease {
    let mut lease = pool.lease();
    lease.reserve(ids.len()).unwrap();
    lease.set_len(ids.len());
    lease.publish(&tokens(ids), 1);
    lease
}

/// Positions of `ids` that can be adopted now.
fn found(pool: &PagePool, ids: &[u32]) -> usize {
    pool.lease().adopt_prefix(&tokens(ids), 1)
}

#[test]
fn a_dropped_lease_returns_its_pages() {
    let pool = PagePool::new(3, PAGE);
    let mut a = pool.lease();
    a.reserve(5).unwrap();
    assert_eq!(pool.num_free(), 1);
    let mut b = pool.lease();
    assert_eq!(b.reserve(5), Err(OutOfPages));
    assert_eq!(pool.num_free(), 1, "a refused reservation takes nothing");
    a.set_len(3);
    a.shrink();
    assert_eq!(pool.num_free(), 2);
    drop(a);
    assert_eq!((pool.num_free(), pool.num_cached()), (3, 0));
}

#[test]
fn a_prefix_outlives_its_lease_and_is_shared() {
    let pool = PagePool::new(6, PAGE);
    let first = published(&pool, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let pages = first.table().pages()[..2].to_vec();
    drop(first);
    assert_eq!((pool.num_free(), pool.num_cached()), (6, 2), "the third page was not full");

    let mut a = pool.lease();
    assert_eq!(a.adopt_prefix(&tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), 1), 8);
    assert_eq!((a.table().pages(), a.table().len()), (&pages[..], 8));
    let mut b = pool.lease();
    assert_eq!(b.adopt_prefix(&tokens(&[1, 2, 3, 4, 5, 6, 7, 0]), 1), 4);
    assert_eq!((pool.num_free(), pool.num_cached()), (4, 0), "a shared page counts once");
    assert_eq!(b.adopt_prefix(&tokens(&[1, 2, 3, 4]), 1), 0, "only an empty lease adopts");
    assert_eq!(found(&pool, &[5, 6, 7, 8]), 0, "a page is found behind its own prefix only");
    assert_eq!(found(&pool, &[1, 2, 3]), 0);
}

#[test]
fn an_equal_page_stays_private_and_the_chain_goes_on() {
    let pool = PagePool::new(8, PAGE);
    let a = published(&pool, &[1, 1, 1, 1]);
    let mut b = published(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]);
    assert_ne!(a.table().pages()[0], b.table().pages()[0]);
    let mut c = pool.lease();
    assert_eq!(c.adopt_prefix(&tokens(&[1, 1, 1, 1, 2, 2, 2, 2]), 1), 8);
    assert_eq!(c.table().pages(), [a.table().pages()[0], b.table().pages()[1]]);
    drop((a, c));

    // The page that stands in for b's own goes, and takes the rest of the chain with it; b publishes all of it again.
    pool.clear_cache();
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]), 0);
    b.publish(&tokens(&[1, 1, 1, 1, 2, 2, 2, 2]), 1);
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]), 8);
    drop(b);
    assert_eq!((pool.num_free(), pool.num_cached()), (8, 2));
}

#[test]
fn the_least_recently_used_chain_is_evicted_from_its_end() {
    let pool = PagePool::new(4, PAGE);
    drop(published(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]));
    drop(published(&pool, &[3, 3, 3, 3, 4, 4, 4, 4]));
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]), 8, "and is used again");
    let mut lease = pool.lease();
    lease.reserve(1).unwrap();
    assert_eq!(found(&pool, &[3, 3, 3, 3, 4, 4, 4, 4]), 4);
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]), 8, "the look above was a use");
    lease.reserve(2 * PAGE).unwrap();
    assert_eq!(found(&pool, &[3, 3, 3, 3]), 0);
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 2, 2]), 8);
    assert_eq!(lease.reserve(5 * PAGE), Err(OutOfPages));
    assert_eq!(pool.num_cached(), 2, "a refused reservation evicts nothing");
    pool.clear_cache();
    assert_eq!((pool.num_free(), pool.num_cached()), (2, 0));
}

#[test]
fn a_cut_page_is_unpublished_or_given_back() {
    let ids = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
    let pool = PagePool::new(6, PAGE);
    let mut a = published(&pool, &ids);
    let mut b = pool.lease();
    b.adopt_prefix(&tokens(&ids[..8]), 1);

    b.set_len(6);
    assert_eq!((b.table().len(), b.table().pages().len()), (4, 1), "a uses the page that is cut");
    assert_eq!(found(&pool, &ids), 12);
    let shared = a.table().pages()[1];
    a.set_len(6);
    assert_eq!((a.table().len(), a.table().pages()[1]), (6, shared), "nobody else uses the page that is cut");
    assert_eq!(found(&pool, &ids), 4, "what lay behind it cannot be found");
    assert_eq!(pool.num_free(), 4);

    // At a page border nothing is cut, and what lies beyond stays findable.
    a.reserve(8).unwrap();
    a.set_len(8);
    a.publish(&tokens(&[1, 1, 1, 1, 2, 2, 9, 9]), 1);
    a.set_len(4);
    assert_eq!(a.table().pages().len(), 1);
    assert_eq!(found(&pool, &[1, 1, 1, 1, 2, 2, 9, 9]), 8);
    a.set_len(0);
    a.shrink();
    drop(b);
    assert_eq!((pool.num_free(), pool.num_cached()), (6, 2));
}

#[test]
fn a_page_of_a_longer_block_is_found_by_all_tokens_of_the_block() {
    let pool = PagePool::new(8, PAGE);
    let [old, new] = [[1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 3, 3, 3, 3]].map(|ids| tokens(&ids));
    let write = |ids: &[TokenId]| {
        let mut lease = pool.lease();
        lease.reserve(8).unwrap();
        lease.set_len(8);
        lease.publish(ids, 8);
        lease
    };
    let [a, b] = [write(&old), write(&new)];
    let mut c = pool.lease();
    assert_eq!(c.adopt_prefix(&new[..7], 8), 0, "half a block");
    assert_eq!(c.adopt_prefix(&new, 1), 0, "another block length");
    assert_eq!(c.adopt_prefix(&new, 0), 0);
    assert_eq!(c.adopt_prefix(&new, usize::MAX), 0);
    assert_eq!(c.adopt_prefix(&new, 8), 8);
    // The first page's KV depends on the second page's tokens.
    assert_eq!(c.table().pages(), b.table().pages());
    drop(a);
    assert_eq!(pool.num_cached(), 2);
}

#[test]
fn a_page_of_an_askew_run_is_not_published_twice() {
    let pool = PagePool::new(3, PAGE);
    let [old, new] =
        [[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]].map(|ids| tokens(&ids));
    let mut lease = pool.lease();
    lease.reserve(12).unwrap();
    lease.set_len(12);
    lease.publish(&old, 6);
    // The second block goes on differently. The first page does not depend on it, but its key has the old tokens.
    lease.set_len(6);
    lease.reserve(12).unwrap();
    lease.set_len(12);
    lease.publish(&new, 6);
    pool.lock().check();
    let mut other = pool.lease();
    assert_eq!((other.adopt_prefix(&old, 6), other.adopt_prefix(&new, 6)), (0, 0));
    drop(lease);
    assert_eq!((pool.num_free(), pool.num_cached()), (3, 1));
}

/// A sequence whose KV is written as a model would write it.
#[derive(Debug)]
struct Writer {
    lease: PageLease,
    tokens: Vec<TokenId>,
    border: usize,
}

/// What a position's KV depends on: the block length, and all tokens up to the block's end.
type Content = (usize, Vec<TokenId>);

/// What lies in the pages.
#[derive(Debug, Default)]
struct Memory(HashMap<(PageId, usize), Content>);

impl Writer {
    fn content(&self, position: usize) -> Content {
        (self.border, self.tokens[..(position / self.border + 1) * self.border].to_vec())
    }

    fn place(&self, position: usize) -> (PageId, usize) {
        (self.lease.table().pages()[position / PAGE], position % PAGE)
    }

    /// Feeds all tokens that lack KV, if there is room.
    fn feed(&mut self, pool: &PagePool, memory: &mut Memory) {
        let len = self.tokens.len();
        let missing = len.div_ceil(PAGE).saturating_sub(self.lease.table().pages().len());
        let enough = pool.num_free() >= missing;
        assert_eq!(self.lease.reserve(len).is_ok(), enough, "{missing} pages missing");
        if enough {
            let written = self.lease.table().len()..len;
            memory.0.extend(written.map(|position| (self.place(position), self.content(position))));
            self.lease.set_len(len);
        }
    }

    /// Lowers the valid length to a block border, and forgets the tokens beyond.
    fn cut(&mut self, len: usize) {
        self.lease.set_len(len.min(self.lease.table().len()));
        while !self.lease.table().len().is_multiple_of(self.border) {
            self.lease.set_len(self.lease.table().len() / self.border * self.border);
        }
        self.tokens.truncate(self.lease.table().len());
    }

    fn check(&self, memory: &Memory) {
        for position in 0..self.lease.table().len() {
            assert_eq!(memory.0[&self.place(position)], self.content(position), "position {position}");
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Starts again with these tokens.
    Adopt(Vec<u32>),
    /// Appends these tokens.
    Feed(Vec<u32>),
    Publish,
    Cut(usize),
    Reserve(usize),
    Shrink,
    Drop,
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    // Few different runs of tokens, so that sequences often begin alike.
    let ids = |num_runs| {
        let run = (0u32..2, prop_oneof![4 => Just(4usize), 1 => 1usize..4]);
        let runs = proptest::collection::vec(run, num_runs);
        runs.prop_map(|runs| runs.into_iter().flat_map(|(id, len)| std::iter::repeat_n(id, len)).collect())
    };
    prop_oneof![
        6 => ids(0..7).prop_map(Op::Adopt),
        4 => ids(1..4).prop_map(Op::Feed),
        6 => Just(Op::Publish),
        4 => (0usize..40).prop_map(Op::Cut),
        1 => (0usize..40).prop_map(Op::Reserve),
        2 => Just(Op::Shrink),
        1 => Just(Op::Drop),
        1 => prop_oneof![9 => Just(Op::Shrink), 1 => Just(Op::Clear)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Blocks shorter than a page, longer, and askew to it, beside a causal writer.
    #[test]
    fn nobody_writes_what_another_sees(
        border in prop_oneof![Just(1usize), Just(2), Just(4), Just(6), Just(8)],
        ops in proptest::collection::vec((0usize..4, op()), 1..80),
    ) {
        const NUM_PAGES: usize = 18;
        let pool = PagePool::new(NUM_PAGES, PAGE);
        let mut memory = Memory::default();
        let mut writers = [border, border, border, 1].map(|border| Writer {
            lease: pool.lease(),
            tokens: Vec::new(),
            border,
        });
        for (who, op) in ops {
            let writer = &mut writers[who];
            let border = writer.border;
            let whole = |ids: &[u32]| tokens(&ids[..ids.len() / border * border]);
            match op {
                Op::Adopt(ids) => {
                    writer.cut(0);
                    writer.lease.shrink();
                    writer.tokens = whole(&ids);
                    let len = writer.lease.adopt_prefix(&writer.tokens, border);
                    prop_assert_eq!(len, writer.lease.table().len());
                    prop_assert!(len.is_multiple_of(border) && len.is_multiple_of(PAGE) && len <= writer.tokens.len());
                    writer.check(&memory);
                    writer.feed(&pool, &mut memory);
                }
                Op::Feed(ids) => {
                    writer.tokens.truncate(writer.lease.table().len());
                    writer.tokens.extend(whole(&ids));
                    writer.feed(&pool, &mut memory);
                }
                Op::Publish => {
                    writer.lease.publish(&writer.tokens, border);
                    // Askew runs whose first pages are published with other tokens are not published again.
                    if border != 6 {
                        let full = writer.lease.table().len() / PAGE.max(border) * PAGE.max(border);
                        prop_assert_eq!(pool.lease().adopt_prefix(&writer.tokens[..full], border), full);
                    }
                }
                Op::Cut(len) => writer.cut(len),
                Op::Reserve(len) => {
                    let missing = len.div_ceil(PAGE).saturating_sub(writer.lease.table().pages().len());
                    let free = pool.num_free();
                    prop_assert_eq!(writer.lease.reserve(len).is_ok(), missing <= free);
                    prop_assert_eq!(pool.num_free(), free - if missing <= free { missing } else { 0 });
                }
                Op::Shrink => writer.lease.shrink(),
                Op::Drop => {
                    writer.lease = pool.lease();
                    writer.tokens.clear();
                }
                Op::Clear => {
                    pool.clear_cache();
                    prop_assert_eq!(pool.num_cached(), 0);
                }
            }
            check(&pool, &writers, &memory);
        }
        drop(writers);
        prop_assert_eq!(pool.num_free(), NUM_PAGES);
        pool.clear_cache();
        prop_assert_eq!((pool.num_free(), pool.num_cached()), (NUM_PAGES, 0));
    }
}

/// Panics unless all valid KV is what it must be, and only full valid pages are seen by others.
fn check(pool: &PagePool, writers: &[Writer], memory: &Memory) {
    let state = pool.lock();
    state.check();
    let mut num_users: HashMap<PageId, usize> = HashMap::new();
    for writer in writers {
        writer.check(memory);
        for (index, &page) in writer.lease.table().pages().iter().enumerate() {
            *num_users.entry(page).or_default() += 1;
            let is_full = (index + 1) * PAGE <= writer.lease.table().len();
            assert!(is_full || !state.is_visible(page), "{page:?} can be written and seen");
        }
    }
    for (&page, &count) in &num_users {
        assert_eq!(state.num_users(page), count);
        assert!(count == 1 || state.index.contains(page), "{page:?} is shared but not published");
    }
    assert_eq!(num_users.len() + state.num_free(), pool.num_pages());
}
