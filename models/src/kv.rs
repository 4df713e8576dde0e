//! KV storage: fixed pages of keys and values. Storage only; who owns which page, and when a position is valid, is
//! the engine's business.

use candle_core::{Device, Tensor};
use kernels::device::Array;

use crate::{KvLayout, ModelError};

/// Index of a page in a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Keys and values of all layers, `[pages, kv_heads, page_len, head_dim]` each.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    page_len: usize,
    num_pages: usize,
    storage: Storage,
}

/// Where the pages are. A model knows one kind.
#[derive(Debug)]
enum Storage {
    Host(Vec<LayerKv>),
    Device(Vec<DeviceKv>),
}

/// The pages of one layer on a device, `[pages, kv_heads, page_len, head_dim]`.
#[derive(Debug, Clone)]
pub(crate) struct DeviceKv {
    /// Keys, rotated.
    pub(crate) keys: Array,
    pub(crate) values: Array,
}

/// The pages of one layer. Cloning shares the storage.
#[derive(Debug, Clone)]
pub struct LayerKv {
    /// Keys, rotated, `[pages, kv_heads, page_len, head_dim]`.
    pub keys: Tensor,
    /// Values, `[pages, kv_heads, page_len, head_dim]`.
    pub values: Tensor,
}

impl KvCache {
    /// Reserves `num_pages` pages of `page_len` positions in f32. The memory is written once, so that it is resident
    /// from the start and a later request cannot fail for want of it.
    pub fn new(layout: KvLayout, num_pages: usize, page_len: usize) -> Result<Self, ModelError> {
        let shape = (num_pages, layout.num_kv_heads, page_len, layout.head_dim);
        let elements = num_pages * layout.num_kv_heads * page_len * layout.head_dim;
        // Zeros would be mapped lazily: the memory of an untouched page would be found, or missed, by a request.
        let storage = || Tensor::from_vec(vec![f32::MIN_POSITIVE; elements], shape, &Device::Cpu);
        let layers = (0..layout.num_layers)
            .map(|_| Ok(LayerKv { keys: storage()?, values: storage()? }))
            .collect::<Result<Vec<_>, candle_core::Error>>()?;
        Ok(Self { layout, page_len, num_pages, storage: Storage::Host(layers) })
    }

    /// A cache over pages on a device, one pair a layer.
    pub(crate) fn on_device(layout: KvLayout, num_pages: usize, page_len: usize, layers: Vec<DeviceKv>) -> Self {
        Self { layout, page_len, num_pages, storage: Storage::Device(layers) }
    }

    /// Shape of one position.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Positions per page.
    pub fn page_len(&self) -> usize {
        self.page_len
    }

    /// Number of pages.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// The storage of the layers, in host memory.
    pub(crate) fn host_layers(&self) -> Result<&[LayerKv], ModelError> {
        match &self.storage {
            Storage::Host(layers) => Ok(layers),
            Storage::Device(_) => Err(ModelError::ForeignCache { expected: "on the CPU", got: "on a device" }),
        }
    }

    /// The storage of the layers, on a device.
    pub(crate) fn device_layers(&self) -> Result<&[DeviceKv], ModelError> {
        match &self.storage {
            Storage::Device(layers) => Ok(layers),
            Storage::Host(_) => Err(ModelError::ForeignCache { expected: "on a device", got: "on the CPU" }),
        }
    }
}

/// Where one sequence's positions lie, and how many of them are valid.
///
/// Invariant: `len <= capacity()`. Truncation moves a counter; nothing is copied.
#[derive(Debug, Default)]
pub struct KvTable {
    pages: Vec<PageId>,
    len: usize,
    page_len: usize,
}

impl KvTable {
    /// An empty table over pages of `page_len` positions.
    pub fn new(page_len: usize) -> Self {
        Self { pages: Vec::new(), len: 0, page_len }
    }

    /// A table that owns `pages` from the start.
    pub fn with_pages(pages: Vec<PageId>, page_len: usize) -> Self {
        Self { pages, len: 0, page_len }
    }

    /// Number of valid positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is valid.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that the pages can hold.
    pub fn capacity(&self) -> usize {
        self.pages.len() * self.page_len
    }

    /// The pages, in order of position.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Adds a page behind the last one.
    pub fn push_page(&mut self, page: PageId) {
        self.pages.push(page);
    }

    /// Declares `count` more positions valid. Returns false, and changes nothing, if the pages cannot hold them.
    #[must_use]
    pub fn append(&mut self, count: usize) -> bool {
        let fits = self.len + count <= self.capacity();
        if fits {
            self.len += count;
        }
        fits
    }

    /// Declares the positions from `len` on invalid. Longer than the valid length is a no-op.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Takes back the pages that lie wholly beyond the first `keep` positions.
    pub fn release_beyond(&mut self, keep: usize) -> Vec<PageId> {
        let num_kept = keep.max(self.len).div_ceil(self.page_len.max(1)).min(self.pages.len());
        self.pages.split_off(num_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_pages_and_positions() {
        let mut table = KvTable::with_pages(vec![PageId(7), PageId(3)], 4);
        assert!(table.append(6));
        assert!(!table.append(3), "8 positions, 9 asked");
        assert_eq!(table.len(), 6);
        assert!(table.append(2));
        table.truncate(3);
        table.truncate(5);
        assert_eq!(table.len(), 3);
        assert_eq!(table.release_beyond(0), vec![PageId(3)]);
        assert_eq!(table.capacity(), 4);
    }
}
