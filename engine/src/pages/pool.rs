//! The state behind the pool's lock: users of pages, the free list, the idle list.

use std::collections::BTreeMap;

use models::{PageId, TokenId};

use super::prefix::{NodeRef, Parent, PrefixIndex, Runs};

/// Every page is in one of three states: in use (by one lease, or by several if it is published), idle (published, no
/// user), or free (neither).
#[derive(Debug)]
pub(super) struct PoolState {
    free: Vec<PageId>,
    /// Idle pages by the stamp of their last release, oldest first. Invariant: an idle page is older than the idle page
    /// before it, so that a chain is evicted from its end.
    idle: BTreeMap<u64, PageId>,
    pages: Vec<PageState>,
    pub(super) index: PrefixIndex,
    next_stamp: u64,
}

#[derive(Debug, Clone, Default)]
struct PageState {
    num_users: usize,
    /// The key in `idle`.
    stamp: Option<u64>,
}

impl PoolState {
    pub(super) fn new(num_pages: usize) -> Self {
        Self {
            // Reversed, so that low pages go out first and stay warm.
            free: (0..num_pages as u32).rev().map(PageId).collect(),
            idle: BTreeMap::new(),
            pages: vec![PageState::default(); num_pages],
            index: PrefixIndex::default(),
            next_stamp: 0,
        }
    }

    pub(super) fn num_free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub(super) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Hands out `count` pages with one user each, or changes nothing. Evicts idle pages if too few are free.
    pub(super) fn take(&mut self, count: usize) -> Option<impl Iterator<Item = PageId>> {
        if self.num_free() < count {
            return None;
        }
        while self.free.len() < count && self.evict() {}
        let taken = self.free.split_off(self.free.len().checked_sub(count)?);
        for &page in &taken {
            self.page_mut(page).num_users = 1;
        }
        Some(taken.into_iter().rev())
    }

    /// Takes a reference on each page of the longest published beginning of `runs` that consists of whole runs.
    pub(super) fn adopt(&mut self, runs: Runs<'_>, border: usize) -> Vec<NodeRef> {
        let mut nodes: Vec<NodeRef> = Vec::new();
        for index in 0..runs.num_pages() {
            let parent = nodes.last().map_or(Parent::Root { border }, |&node| Parent::Node(node));
            let Some(node) = self.index.find(parent, runs.key(index)) else { break };
            nodes.push(node);
        }
        nodes.truncate(nodes.len() / runs.pages_per_run() * runs.pages_per_run());
        for node in &nodes {
            let page = self.page_mut(node.page);
            page.num_users += 1;
            if let Some(stamp) = page.stamp.take() {
                self.idle.remove(&stamp);
            }
        }
        nodes
    }

    /// Publishes `page` behind `parent`. If an equal page is published there already, that one is returned, and `page`
    /// stays as it is. None if `page` is published with other tokens.
    pub(super) fn publish(&mut self, page: PageId, parent: Parent, key: &[TokenId]) -> Option<NodeRef> {
        match self.index.find(parent, key) {
            Some(node) => Some(node),
            None if self.index.contains(page) => None,
            None => Some(self.index.insert(page, parent, key)),
        }
    }

    /// Takes one user from each page of a lease. The last page goes first: it is to be the oldest, and no page
    /// is stamped twice.
    pub(super) fn release(&mut self, pages: Vec<PageId>) {
        for page in pages.into_iter().rev() {
            let state = self.page_mut(page);
            state.num_users -= 1;
            if state.num_users > 0 {
                continue;
            }
            if !self.index.contains(page) {
                self.free.push(page);
                continue;
            }
            // The pages before it may be idle already, if the lease had pages of its own in their place.
            let mut next = Some(page);
            while let Some(page) = next.filter(|&page| self.pages[page.0 as usize].num_users == 0) {
                self.stamp(page);
                next = self.index.page_before(page);
            }
        }
    }

    /// Whether a lease other than the one that holds `page` sees it, or could.
    pub(super) fn is_visible(&self, page: PageId) -> bool {
        self.index.contains(page) || self.num_users(page) > 1
    }

    pub(super) fn num_users(&self, page: PageId) -> usize {
        self.pages[page.0 as usize].num_users
    }

    /// Unpublishes `page` and the pages behind it, which nobody could find without it. The idle ones become free.
    pub(super) fn unpublish(&mut self, page: PageId) {
        for page in self.index.remove(page) {
            if let Some(stamp) = self.page_mut(page).stamp.take() {
                self.idle.remove(&stamp);
                self.free.push(page);
            }
        }
    }

    /// Frees the idle page that was released first. Returns whether there was one.
    pub(super) fn evict(&mut self) -> bool {
        let oldest = self.idle.first_key_value().map(|(_, &page)| page);
        if let Some(page) = oldest {
            self.unpublish(page);
        }
        oldest.is_some()
    }

    /// Makes `page` the youngest of the idle pages.
    fn stamp(&mut self, page: PageId) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        if let Some(older) = self.page_mut(page).stamp.replace(stamp) {
            self.idle.remove(&older);
        }
        self.idle.insert(stamp, page);
    }

    fn page_mut(&mut self, page: PageId) -> &mut PageState {
        &mut self.pages[page.0 as usize]
    }

    /// Panics unless every page is in exactly one state and chains are stamped from their ends.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.index.check();
        for &page in &self.free {
            assert!(!self.index.contains(page) && self.num_users(page) == 0, "{page:?} is free");
        }
        for (&stamp, &page) in &self.idle {
            assert_eq!(self.pages[page.0 as usize].stamp, Some(stamp));
            assert!(self.index.contains(page) && self.num_users(page) == 0, "{page:?} is idle");
            let before = self.index.page_before(page).and_then(|page| self.pages[page.0 as usize].stamp);
            assert!(before.is_none_or(|before| before > stamp), "{page:?} would outlive the page before it");
        }
        let num_used = self.pages.iter().filter(|page| page.num_users > 0).count();
        assert_eq!(num_used + self.free.len() + self.idle.len(), self.pages.len());
    }
}
