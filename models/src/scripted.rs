//! Backbones that answer from a rule instead of weights, for tests of everything above a model.
//!
//! They keep the promises of [`Backbone`] and check those of its callers: what a row sees is read from what earlier
//! passes wrote into its pages, so a position that is kept although its prefix was wrong changes the answer, exactly
//! as a stale key would.

use std::collections::HashMap;

use crate::{
    AttentionKind, Backbone, BackboneSpec, ForwardBatch, KvCache, KvLayout, LogitAlignment, Logits, ModelError, PageId,
    Segment, TokenId,
};

/// How a scripted model chooses its favourite token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// By a hash of everything that the row sees. With causal attention no token can be foreseen.
    Hash {
        /// Which of the many hash models.
        seed: u64,
    },
    /// `(position + 1) % period`, whatever the context is: every token can be foreseen.
    Periodic {
        /// At least 1.
        period: u32,
    },
    /// The token that a table has at the scored position, [`Rule::Hash`] with seed 0 beyond its end.
    Table(Vec<TokenId>),
    /// The token after the last seen one, modulo the vocabulary: a long chain of dependencies that is easy to check.
    Successor,
}

/// A model that answers from a [`Rule`].
#[derive(Debug)]
pub struct Scripted {
    spec: BackboneSpec,
    rule: Rule,
    /// For each written position a hash of its token and of everything it saw: the stand-in for keys and values.
    states: HashMap<(PageId, usize), u64>,
    /// Passes run so far.
    pub num_passes: usize,
}

impl Scripted {
    /// A causal model.
    pub fn causal(rule: Rule, vocab_size: usize, context_len: usize) -> Self {
        Self::new(rule, vocab_size, context_len, AttentionKind::Causal)
    }

    /// A masked diffusion model whose last token id is the mask. `attention` is full or block-causal.
    pub fn diffusion(rule: Rule, vocab_size: usize, context_len: usize, attention: AttentionKind) -> Self {
        let mut model = Self::new(rule, vocab_size, context_len, attention);
        model.spec.alignment = LogitAlignment::SameSlot;
        model.spec.mask_id = Some(TokenId(vocab_size as u32 - 1));
        model
    }

    /// The same with rows that score another slot.
    pub fn with_alignment(mut self, alignment: LogitAlignment) -> Self {
        self.spec.alignment = alignment;
        self
    }

    fn new(rule: Rule, vocab_size: usize, context_len: usize, attention: AttentionKind) -> Self {
        let spec = BackboneSpec {
            family: "scripted".into(),
            vocab_size,
            context_len,
            attention,
            alignment: LogitAlignment::NextSlot,
            mask_id: None,
            kv: KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 1, element_bytes: 4 },
            has_solver: false,
            num_params: 0,
            num_active_params: 0,
            attention_dim: 1,
            weight_bytes: 0,
        };
        Self { spec, rule, states: HashMap::new(), num_passes: 0 }
    }

    fn state(&self, segment: &Segment<'_>, page_len: usize, position: usize) -> Result<u64, ModelError> {
        let key = (segment.pages[position / page_len], position % page_len);
        self.states.get(&key).copied().ok_or(ModelError::UnwrittenPosition { position })
    }

    /// Writes the rows of a segment and returns the state that each of them sees.
    fn write(&mut self, segment: &Segment<'_>, page_len: usize) -> Result<Vec<u64>, ModelError> {
        let key = |position: usize| (segment.pages[position / page_len], position % page_len);
        let causal = self.spec.attention == AttentionKind::Causal;
        if causal {
            // What the caller has declared invalid is forgotten, so that reading it is an error and not luck.
            for position in segment.start..segment.pages.len() * page_len {
                self.states.remove(&key(position));
            }
        }
        for (row, &token) in segment.tokens.iter().enumerate() {
            let position = segment.start + row;
            // A causal state chains through the previous position; a bidirectional one knows only itself at first.
            let before = if causal && position > 0 { self.state(segment, page_len, position - 1)? } else { 0 };
            let state = mix(before ^ mix(u64::from(token.0) << 20 ^ position as u64));
            self.states.insert(key(position), state);
        }
        (0..segment.tokens.len())
            .map(|row| {
                let position = segment.start + row;
                if causal {
                    return self.state(segment, page_len, position);
                }
                let visible = segment.visibility.end(position, segment.end());
                (0..visible).try_fold(position as u64, |seen, p| Ok(mix(seen ^ self.state(segment, page_len, p)?)))
            })
            .collect()
    }

    fn favourite(&self, state: u64, token: TokenId, scored_position: usize) -> TokenId {
        let vocab = self.spec.vocab_size as u32 - u32::from(self.spec.mask_id.is_some());
        let by_hash = |seed: u64| TokenId((mix(state ^ mix(seed)) % u64::from(vocab)) as u32);
        match &self.rule {
            Rule::Hash { seed } => by_hash(*seed),
            Rule::Periodic { period } => TokenId(scored_position as u32 % period % vocab),
            Rule::Table(table) => table.get(scored_position).copied().unwrap_or_else(|| by_hash(0)),
            Rule::Successor => TokenId((token.0 + 1) % vocab),
        }
    }
}

impl Backbone for Scripted {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        batch.check(&self.spec, kv)?;
        self.num_passes += 1;
        let vocab_size = self.spec.vocab_size;
        let mut values = Vec::with_capacity(batch.num_scored() * vocab_size);
        for segment in &batch.segments {
            let states = self.write(segment, kv.page_len())?;
            for row in segment.scored.clone() {
                let position = segment.start + row + usize::from(self.spec.alignment == LogitAlignment::NextSlot);
                let favourite = self.favourite(states[row], segment.tokens[row], position);
                // Every token has its own logit in [0, 4), so that sampling has something to choose from.
                let spread = |v: usize| (mix(states[row] ^ (v as u64) << 32) >> 40) as f32 / (1 << 22) as f32;
                let first = values.len();
                values.extend((0..vocab_size).map(spread));
                values[first + favourite.0 as usize] = 6.0;
            }
        }
        Logits::new(values, vocab_size)
    }
}

/// One step of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockOrigin, Visibility};

    const PAGES: [PageId; 4] = [PageId(2), PageId(0), PageId(3), PageId(1)];

    fn pass(model: &mut Scripted, tokens: &[u32], start: usize, visibility: Visibility) -> Result<Logits, ModelError> {
        let mut kv = KvCache::new(model.spec().kv, 4, 4)?;
        let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
        let scored = 0..tokens.len();
        let segment = Segment { tokens: &tokens, start, visibility, scored, pages: &PAGES };
        model.forward(&ForwardBatch { segments: vec![segment] }, &mut kv)
    }

    #[test]
    fn causal_rows_depend_on_their_prefix_only() {
        let model = || Scripted::causal(Rule::Hash { seed: 1 }, 50, 16);
        let all = pass(&mut model(), &[5, 6, 7, 8], 0, Visibility::Causal).unwrap();
        let other_end = pass(&mut model(), &[5, 6, 9, 9], 0, Visibility::Causal).unwrap();
        assert_eq!(all.row(1), other_end.row(1));
        assert_ne!(all.row(2), other_end.row(2));
        let mut split = model();
        pass(&mut split, &[5, 6], 0, Visibility::Causal).unwrap();
        let tail = pass(&mut split, &[7, 8], 2, Visibility::Causal).unwrap();
        assert_eq!((tail.row(0), tail.row(1)), (all.row(2), all.row(3)));
    }

    #[test]
    fn a_stale_position_changes_the_answer() {
        let mut model = Scripted::causal(Rule::Hash { seed: 1 }, 50, 16);
        pass(&mut model, &[5, 9, 7], 0, Visibility::Causal).unwrap();
        // The token at position 1 should have been 6; what was written after it is kept.
        let stale = pass(&mut model, &[8], 3, Visibility::Causal).unwrap();
        let fresh = pass(&mut Scripted::causal(Rule::Hash { seed: 1 }, 50, 16), &[5, 6, 7, 8], 0, Visibility::Causal);
        assert_ne!(stale.row(0), fresh.unwrap().row(3));
    }

    #[test]
    fn bidirectional_rows_see_the_whole_canvas() {
        let model = || Scripted::diffusion(Rule::Hash { seed: 1 }, 50, 16, AttentionKind::Full);
        let all = pass(&mut model(), &[5, 49, 49, 8], 0, Visibility::Through(4)).unwrap();
        let other_end = pass(&mut model(), &[5, 49, 49, 9], 0, Visibility::Through(4)).unwrap();
        assert_ne!(all.row(1), other_end.row(1));
    }

    #[test]
    fn block_causal_rows_see_their_own_block_and_no_later_one() {
        let model = || {
            Scripted::diffusion(
                Rule::Hash { seed: 1 },
                50,
                16,
                AttentionKind::BlockCausal { block_len: 2, origin: BlockOrigin::Start },
            )
        };
        let visibility = Visibility::Blocks { origin: 0, block_len: 2 };
        let all = pass(&mut model(), &[5, 6, 7, 8], 0, visibility).unwrap();
        let other_end = pass(&mut model(), &[5, 6, 7, 9], 0, visibility).unwrap();
        assert_eq!(all.row(1), other_end.row(1));
        assert_ne!(all.row(2), other_end.row(2));
    }

    #[test]
    fn reading_what_nobody_wrote_is_an_error() {
        let mut model = Scripted::causal(Rule::Successor, 50, 16);
        let error = pass(&mut model, &[1], 3, Visibility::Causal).unwrap_err();
        assert!(matches!(error, ModelError::UnwrittenPosition { position: 2 }), "{error}");
    }
}
