//! How an engine is set up.

use models::{AttentionKind, BackboneSpec, Capacity};

use crate::{error::EngineError, request::MAX_WIDTH};

/// Positions per KV page.
pub(crate) const PAGE_LEN: usize = 32;
/// Memory that the KV cache takes by default, in bytes.
const DEFAULT_KV_BYTES: usize = 512 << 20;

/// Settings of an engine. Start from `default()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// Sequences that decode at the same time.
    pub max_concurrent: usize,
    /// Sequences that may wait beyond those; one more is refused.
    pub max_queue: usize,
    /// Rows of one forward pass while nobody decodes: the size of a prefill chunk.
    pub max_rows: usize,
    /// Rows of prefill that may share a pass with decoding sequences; bounds how long a long prompt delays them.
    pub interleave_rows: usize,
    /// Positions of the KV cache; `None` takes as many as the requests that run at a time can fill, within `kv_bytes`.
    pub kv_tokens: Option<usize>,
    /// Memory of the KV cache if `kv_tokens` is `None`, in bytes; one full context is held at least. Engines that
    /// share a machine divide what it has for them.
    pub kv_bytes: usize,
    /// Upper limit of the context; `None` is the model's.
    pub max_context: Option<usize>,
    /// Widest Jacobi block of requests that name none; `None` is the model's own, or 8.
    pub width: Option<usize>,
    /// Threads of a forward pass; `None` is one per available core.
    pub threads: Option<usize>,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_concurrent: 8,
            max_queue: 64,
            max_rows: 256,
            interleave_rows: 64,
            kv_tokens: None,
            kv_bytes: DEFAULT_KV_BYTES,
            max_context: None,
            width: None,
            threads: None,
        }
    }
}

impl EngineSettings {
    /// Checks every range.
    pub fn validate(&self) -> Result<(), EngineError> {
        let positive = [
            ("max_concurrent", self.max_concurrent, 4096),
            ("max_rows", self.max_rows, 1 << 16),
            ("interleave_rows", self.interleave_rows, 1 << 16),
            ("kv_tokens", self.kv_tokens.unwrap_or(1), 1 << 32),
            ("max_context", self.max_context.unwrap_or(2), 1 << 32),
            ("width", self.width.unwrap_or(1), MAX_WIDTH),
            ("threads", self.threads.unwrap_or(1), 1024),
            ("max_queue", self.max_queue + 1, 1 << 20),
        ];
        for (setting, value, limit) in positive {
            if value == 0 || value > limit {
                let message = format!("{value} is not between 1 and {limit}");
                return Err(EngineError::InvalidSetting { setting, message });
            }
        }
        Ok(())
    }

    /// What the passes of a model must have room for. Canvases are passes of their own length, however small `max_rows`
    /// is, and every sequence that decodes has a row in every pass.
    /// A prompt that ends in a pass brings the drafts of its first block along, `width` at most.
    pub(crate) fn capacity(
        &self,
        spec: &BackboneSpec,
        (context_len, num_pages): (usize, usize),
        width: usize,
    ) -> Capacity {
        // Rows that a canvas takes at once, and those that a prompt does.
        let (whole, least) = match spec.attention {
            AttentionKind::Causal => (1, 1),
            // A chunk of the prompt and the block behind it.
            AttentionKind::BlockCausal { block_len, .. } => (2 * block_len, block_len),
            AttentionKind::Full => (context_len, 1),
        };
        let drafts = match spec.attention {
            AttentionKind::Causal => self.max_concurrent * (width - 1),
            AttentionKind::BlockCausal { .. } | AttentionKind::Full => 0,
        };
        let rows = self.max_rows.max(whole).max(self.max_concurrent) + self.interleave_rows.max(least);
        Capacity {
            max_rows: rows + drafts,
            max_tables: self.max_concurrent,
            context_len,
            num_pages,
            page_len: PAGE_LEN,
        }
    }

    /// Context length and number of KV pages for a model with `context_len` positions of `bytes_per_token`.
    pub(crate) fn plan_kv(&self, context_len: usize, bytes_per_token: usize) -> Result<(usize, usize), EngineError> {
        let mut context = self.max_context.unwrap_or(context_len);
        if context > context_len {
            let message = format!("{context} is beyond the model's context of {context_len}");
            return Err(EngineError::InvalidSetting { setting: "max_context", message });
        }
        if context < 2 {
            let message = format!("a context of {context} holds no prompt and completion");
            return Err(EngineError::InvalidSetting { setting: "max_context", message });
        }
        let tokens = match self.kv_tokens {
            Some(tokens) => {
                let held = tokens / PAGE_LEN * PAGE_LEN;
                if held < context {
                    tracing::warn!(
                        from = context,
                        to = held,
                        "the KV cache holds less than one context: it is shortened"
                    );
                }
                context = context.min(held);
                tokens
            }
            None => {
                let affordable = self.kv_bytes / bytes_per_token.max(1);
                affordable.min(context.saturating_mul(self.max_concurrent)).max(context)
            }
        };
        if context < 2 {
            let message = format!("{tokens} tokens do not fill one page of {PAGE_LEN}");
            return Err(EngineError::InvalidSetting { setting: "kv_tokens", message });
        }
        Ok((context, tokens.div_ceil(PAGE_LEN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_full_context_always_fits() {
        let settings = EngineSettings::default();
        let (context, pages) = settings.plan_kv(8192, 1 << 20).unwrap();
        assert_eq!((context, pages), (8192, 256), "8 GiB are needed for one context, whatever the default is");
        let (_, pages) = settings.plan_kv(256, 100).unwrap();
        assert_eq!(pages, 8 * 8, "no more than every slot can use");
        let settings = EngineSettings { kv_bytes: 100 << 10, ..settings };
        assert_eq!(settings.plan_kv(256, 100).unwrap().1, 1024 / PAGE_LEN, "1024 positions of 100 bytes");
        assert_eq!(settings.plan_kv(256, 1 << 20).unwrap().1, 8, "one context at least");
    }

    #[test]
    fn fewer_kv_tokens_than_the_context_shorten_it() {
        let settings = EngineSettings { kv_tokens: Some(100), ..EngineSettings::default() };
        assert_eq!(settings.plan_kv(8192, 1).unwrap(), (96, 4));
        let settings = EngineSettings { kv_tokens: Some(PAGE_LEN - 1), ..EngineSettings::default() };
        assert!(settings.plan_kv(8192, 1).is_err());
    }

    #[test]
    fn zero_and_absurd_settings_are_refused() {
        let base = EngineSettings::default;
        assert!(base().validate().is_ok());
        for bad in [
            EngineSettings { max_concurrent: 0, ..base() },
            EngineSettings { max_rows: 0, ..base() },
            EngineSettings { threads: Some(0), ..base() },
            EngineSettings { width: Some(MAX_WIDTH + 1), ..base() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        assert!(EngineSettings { max_queue: 0, ..base() }.validate().is_ok(), "no queue at all is a choice");
    }
}
