//! KV page leases: who owns which page. No tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use models::{KvTable, PageId};

/// The free pages of one KV cache.
#[derive(Debug, Clone)]
pub(crate) struct PagePool {
    free: Arc<Mutex<Vec<PageId>>>,
    num_pages: usize,
    page_len: usize,
}

/// The pool has no page left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no KV page is free")]
pub(crate) struct OutOfPages;

impl PagePool {
    /// A pool of `num_pages` pages of `page_len` positions, all free.
    pub(crate) fn new(num_pages: usize, page_len: usize) -> Self {
        // Reversed, so that low pages go out first and stay warm.
        let free = (0..num_pages as u32).rev().map(PageId).collect();
        Self { free: Arc::new(Mutex::new(free)), num_pages, page_len }
    }

    /// Number of pages.
    pub(crate) fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages that nobody owns.
    pub(crate) fn num_free(&self) -> usize {
        self.lock().len()
    }

    /// An empty lease.
    pub(crate) fn lease(&self) -> PageLease {
        PageLease { table: KvTable::new(self.page_len), pool: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PageId>> {
        // Every critical section is a push or a pop: a poisoned list is still whole.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages of one sequence. They go back to the pool on drop, so a lease is never cloned.
#[derive(Debug)]
pub(crate) struct PageLease {
    table: KvTable,
    pool: PagePool,
}

impl PageLease {
    /// The sequence's positions and pages.
    pub(crate) fn table(&self) -> &KvTable {
        &self.table
    }

    /// Owns pages for at least `len` positions, or changes nothing.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<(), OutOfPages> {
        let missing = len.div_ceil(self.pool.page_len).saturating_sub(self.table.pages().len());
        if missing == 0 {
            return Ok(());
        }
        let mut free = self.pool.lock();
        let keep = free.len().checked_sub(missing).ok_or(OutOfPages)?;
        for page in free.drain(keep..).rev() {
            self.table.push_page(page);
        }
        Ok(())
    }

    /// Declares the first `len` positions valid and the rest not.
    ///
    /// # Panics
    /// If the lease does not cover `len` positions: the caller reserves before a pass writes.
    pub(crate) fn set_len(&mut self, len: usize) {
        if let Some(more) = len.checked_sub(self.table.len()) {
            assert!(self.table.append(more), "{len} positions in pages for {}", self.table.capacity());
        }
        self.table.truncate(len);
    }

    /// Gives back the pages beyond the valid positions.
    pub(crate) fn shrink(&mut self) {
        let released = self.table.release_beyond(self.table.len());
        self.pool.lock().extend(released);
    }
}

impl Drop for PageLease {
    fn drop(&mut self) {
        self.table.truncate(0);
        self.shrink();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dropped_lease_returns_its_pages() {
        let pool = PagePool::new(3, 4);
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
        assert_eq!(pool.num_free(), 3);
    }

    proptest! {
        #[test]
        fn no_page_has_two_owners(ops in proptest::collection::vec((0usize..4, 0usize..40), 1..60)) {
            let pool = PagePool::new(12, 4);
            let mut leases: Vec<PageLease> = (0..4).map(|_| pool.lease()).collect();
            for (who, len) in ops {
                if len < 30 {
                    if leases[who].reserve(len).is_ok() {
                        leases[who].set_len(len);
                    }
                } else if len < 35 {
                    leases[who].set_len(0);
                    leases[who].shrink();
                } else {
                    leases[who] = pool.lease();
                }
                let mut owned: Vec<PageId> = leases.iter().flat_map(|l| l.table().pages().to_vec()).collect();
                let num_owned = owned.len();
                owned.sort();
                owned.dedup();
                prop_assert_eq!(owned.len(), num_owned);
                prop_assert_eq!(num_owned + pool.num_free(), 12);
            }
            drop(leases);
            prop_assert_eq!(pool.num_free(), 12);
        }
    }
}
