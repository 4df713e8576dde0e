//! Which published page holds the KV of which tokens: a tree of pages. It knows neither users nor free pages.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use models::{PageId, TokenId};

/// A published page. The id is never given out twice, so a reference cannot outlive its node and mean another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeRef {
    pub(super) page: PageId,
    id: u64,
}

/// What lies before a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// Nothing. KV that was computed under another block length is other KV, so every border has its own tree.
    Root {
        border: usize,
    },
    Node(NodeRef),
}

#[derive(Debug)]
struct Node {
    id: u64,
    parent: Parent,
    key: Arc<[TokenId]>,
}

/// The published pages by content. Invariant: the parent of every node is a node or a root.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    nodes: HashMap<PageId, Node>,
    /// Ordered, so that the order of removal does not depend on a random hash.
    children: HashMap<Parent, BTreeMap<Arc<[TokenId]>, NodeRef>>,
    next_id: u64,
}

impl PrefixIndex {
    /// The page behind `parent` that depends on exactly the tokens `key`.
    pub(super) fn find(&self, parent: Parent, key: &[TokenId]) -> Option<NodeRef> {
        self.children.get(&parent)?.get(key).copied()
    }

    /// Whether `page` is published.
    pub(super) fn contains(&self, page: PageId) -> bool {
        self.nodes.contains_key(&page)
    }

    /// Whether the node, and so everything before it, is still published.
    pub(super) fn is_live(&self, node: NodeRef) -> bool {
        self.nodes.get(&node.page).is_some_and(|found| found.id == node.id)
    }

    /// The published page before `page`.
    pub(super) fn page_before(&self, page: PageId) -> Option<PageId> {
        match self.nodes.get(&page)?.parent {
            Parent::Root { .. } => None,
            Parent::Node(node) => Some(node.page),
        }
    }

    /// Publishes `page`, which is not published yet, behind `parent`, which is; `key` is not taken there.
    pub(super) fn insert(&mut self, page: PageId, parent: Parent, key: &[TokenId]) -> NodeRef {
        let key: Arc<[TokenId]> = key.into();
        let node = NodeRef { page, id: self.next_id };
        self.next_id += 1;
        self.children.entry(parent).or_default().insert(Arc::clone(&key), node);
        self.nodes.insert(page, Node { id: node.id, parent, key });
        node
    }

    /// Removes `page` and everything behind it, and returns what was removed.
    pub(super) fn remove(&mut self, page: PageId) -> Vec<PageId> {
        let mut removed = Vec::new();
        let mut rest = vec![page];
        while let Some(page) = rest.pop() {
            let Some(Node { id, parent, key }) = self.nodes.remove(&page) else { continue };
            if let Some(siblings) = self.children.get_mut(&parent) {
                siblings.remove(&key);
                if siblings.is_empty() {
                    self.children.remove(&parent);
                }
            }
            let behind = self.children.remove(&Parent::Node(NodeRef { page, id }));
            rest.extend(behind.into_iter().flat_map(BTreeMap::into_values).map(|node| node.page));
            removed.push(page);
        }
        removed
    }

    /// Panics unless every node hangs in the tree, once.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let num_hanging: usize = self.children.values().map(BTreeMap::len).sum();
        assert_eq!(num_hanging, self.nodes.len());
        for (&page, node) in &self.nodes {
            assert_eq!(self.find(node.parent, &node.key), Some(NodeRef { page, id: node.id }));
            if let Parent::Node(parent) = node.parent {
                assert!(self.is_live(parent));
            }
        }
    }
}

/// The part of a sequence that can be shared: whole runs of pages.
///
/// A run is the shortest sequence of pages that ends both on a page border and on a block border: one page for a causal
/// model, and where pages are whole blocks. In a longer run, the KV of a page depends on tokens of later pages too, so
/// a page's key has all tokens from the page's start to the run's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs<'a> {
    tokens: &'a [TokenId],
    page_len: usize,
    run_len: usize,
}

impl<'a> Runs<'a> {
    /// Cuts `tokens` to whole runs. A border of 0, or one that no page border meets, leaves nothing.
    pub(super) fn new(tokens: &'a [TokenId], page_len: usize, border: usize) -> Self {
        let run_len = least_common_multiple(page_len, border).filter(|&len| len > 0 && len <= tokens.len());
        match run_len {
            Some(run_len) => Self { tokens: &tokens[..tokens.len() / run_len * run_len], page_len, run_len },
            None => Self { tokens: &[], page_len, run_len: page_len },
        }
    }

    pub(super) fn num_pages(&self) -> usize {
        self.tokens.len() / self.page_len
    }

    pub(super) fn pages_per_run(&self) -> usize {
        self.run_len / self.page_len
    }

    /// The tokens that the KV of page `index` depends on beyond those of the pages before it.
    pub(super) fn key(&self, index: usize) -> &'a [TokenId] {
        &self.tokens[index * self.page_len..self.end(index)]
    }

    /// The end of the run that page `index` is in.
    pub(super) fn end(&self, index: usize) -> usize {
        (index * self.page_len / self.run_len + 1) * self.run_len
    }
}

fn least_common_multiple(a: usize, b: usize) -> Option<usize> {
    let (mut gcd, mut rest) = (a, b);
    while rest > 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    a.checked_div(gcd)?.checked_mul(b)
}
