//! KV page leases: who owns which page, and which pages sequences with equal beginnings share. No tensors.

mod pool;
mod prefix;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use models::{KvTable, TokenId};

use self::{
    pool::PoolState,
    prefix::{NodeRef, Parent, Runs},
};

/// The pages of one KV cache. A clone is the same pool.
#[derive(Debug, Clone)]
pub(crate) struct PagePool {
    state: Arc<Mutex<PoolState>>,
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
        Self { state: Arc::new(Mutex::new(PoolState::new(num_pages))), num_pages, page_len }
    }

    /// Number of pages.
    pub(crate) fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages that can be handed out now: those that nobody uses, be they cached or not.
    pub(crate) fn num_free(&self) -> usize {
        self.lock().num_free()
    }

    /// Pages that nobody uses and whose content can still be found.
    pub(crate) fn num_cached(&self) -> usize {
        self.lock().num_idle()
    }

    /// Forgets the cached pages that nobody uses. Pages in use stay published.
    #[cfg(test)]
    pub(crate) fn clear_cache(&self) {
        let mut state = self.lock();
        while state.evict() {}
    }

    /// An empty lease.
    pub(crate) fn lease(&self) -> PageLease {
        PageLease { table: KvTable::new(self.page_len), pool: self.clone(), chain: None }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // Critical sections index only by ids that this pool gave out: none stops halfway, a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages of one sequence. They go back to the pool on drop, so a lease is never cloned.
///
/// Its published and adopted pages are read only, as other leases see them or may. All of them lie wholly below the
/// valid length, so a caller that writes from `table().len()` on never touches one.
#[derive(Debug)]
pub(crate) struct PageLease {
    table: KvTable,
    pool: PagePool,
    /// How far the sequence was published or adopted.
    chain: Option<Chain>,
}

/// The end of a chain of published pages whose tokens are those of a sequence's first pages.
#[derive(Debug, Clone, Copy)]
struct Chain {
    border: usize,
    num_pages: usize,
    /// Positions whose tokens decided that `last` is right: up to the end of its run.
    len: usize,
    last: NodeRef,
}

impl PageLease {
    /// The sequence's positions and pages.
    pub(crate) fn table(&self) -> &KvTable {
        &self.table
    }

    /// Makes the longest cached beginning of `tokens` the beginning of this lease and declares it valid; returns its
    /// number of positions. A lease that has pages adopts nothing.
    ///
    /// `border` is the block length of a block-causal model whose blocks start at position 0, and 1 for a causal one;
    /// the result is a multiple of it and of the page length. Only KV that was published with the same border is found.
    pub(crate) fn adopt_prefix(&mut self, tokens: &[TokenId], border: usize) -> usize {
        if !self.table.pages().is_empty() {
            return 0;
        }
        let nodes = self.pool.lock().adopt(Runs::new(tokens, self.pool.page_len, border), border);
        for node in &nodes {
            self.table.push_page(node.page);
        }
        let len = nodes.len() * self.pool.page_len;
        self.set_len(len);
        self.chain = nodes.last().map(|&last| Chain { border, num_pages: nodes.len(), len, last });
        len
    }

    /// Makes the sequence's full pages findable. `tokens` are its tokens from position 0 on whose KV is valid, exact
    /// and final; they count up to the valid length. `border` is as for [`PageLease::adopt_prefix`].
    ///
    /// Where another sequence has published an equal page, this lease keeps its own, private one, and what follows
    /// hangs behind the published one. A call that has nothing new to publish costs one look at the last page.
    pub(crate) fn publish(&mut self, tokens: &[TokenId], border: usize) {
        let tokens = &tokens[..tokens.len().min(self.table.len())];
        let runs = Runs::new(tokens, self.pool.page_len, border);
        let mut state = self.pool.lock();
        // Another lease may have removed a page of the chain that stands in for one of ours: then from the start.
        let mut chain = self.chain.filter(|chain| chain.border == border && state.index.is_live(chain.last));
        let start = chain.map_or(0, |chain| chain.num_pages);
        for (index, &page) in self.table.pages().iter().enumerate().take(runs.num_pages()).skip(start) {
            let parent = chain.map_or(Parent::Root { border }, |chain| Parent::Node(chain.last));
            // A run that was cut within and went on differently still has its first pages under the old tokens.
            let Some(last) = state.publish(page, parent, runs.key(index)) else { break };
            chain = Some(Chain { border, num_pages: index + 1, len: runs.end(index), last });
        }
        self.chain = chain;
    }

    /// Owns pages for at least `len` positions, or changes nothing. Evicts cached pages if no other is free, the least
    /// recently used first.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<(), OutOfPages> {
        let missing = len.div_ceil(self.pool.page_len).saturating_sub(self.table.pages().len());
        if missing == 0 {
            return Ok(());
        }
        for page in self.pool.lock().take(missing).ok_or(OutOfPages)? {
            self.table.push_page(page);
        }
        Ok(())
    }

    /// Declares the first `len` positions valid and the rest not.
    ///
    /// A lower length makes everything from `table().len()` on writable, so it parts with pages that others see:
    ///
    /// * The first such page that lies wholly beyond `len`, and all pages behind it, go back to the pool. They stay
    ///   findable. Whoever writes there reserves first.
    /// * A page that `len` cuts is unpublished, together with what was published behind it, if no other lease uses it.
    ///   If one does, the page goes back too, and **the valid length becomes that page's start**: the caller feeds its
    ///   tokens again from `table().len()`. Where pages are not whole blocks that may be no block border; then the
    ///   caller lowers the length once more.
    ///
    /// # Panics
    /// If the lease does not cover `len` positions: the caller reserves before a pass writes.
    pub(crate) fn set_len(&mut self, len: usize) {
        if let Some(more) = len.checked_sub(self.table.len()) {
            assert!(self.table.append(more), "{len} positions in pages for {}", self.table.capacity());
            return;
        }
        self.table.truncate(len);
        let page_len = self.pool.page_len;
        let mut state = self.pool.lock();
        let visible = |index: &usize| state.is_visible(self.table.pages()[*index]);
        if let Some(first) = (len.div_ceil(page_len)..self.table.pages().len()).find(visible) {
            state.release(self.table.release_beyond(first * page_len));
        }
        let cut = self.table.pages().get(len / page_len).copied().filter(|_| !len.is_multiple_of(page_len));
        if let Some(page) = cut.filter(|&page| state.is_visible(page)) {
            if state.num_users(page) > 1 {
                self.table.truncate(len / page_len * page_len);
                state.release(self.table.release_beyond(self.table.len()));
            } else {
                state.unpublish(page);
            }
        }
        self.chain = self.chain.filter(|chain| chain.len <= self.table.len());
    }

    /// Gives back the pages beyond the valid positions.
    pub(crate) fn shrink(&mut self) {
        let released = self.table.release_beyond(self.table.len());
        if !released.is_empty() {
            self.pool.lock().release(released);
        }
    }
}

impl Drop for PageLease {
    fn drop(&mut self) {
        self.table.truncate(0);
        self.shrink();
    }
}
