//! Text out: from committed tokens to whole code points, cut before stop strings.

use models::text::Tokenizer;

use crate::{event::Commit, event::TokenRecord, sampling::TokenScore};

/// Incremental detokeniser and stop matcher of one sequence.
///
/// A token leaves together with its text: as long as its last byte may belong to an unfinished code point or to a stop
/// string, both are held back. So no event contains anything that is taken back later.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    stops: Vec<String>,
    /// Bytes not yet released.
    pending: Vec<u8>,
    /// Tokens not yet released, with the end of their bytes relative to `pending`.
    waiting: Vec<(usize, TokenRecord)>,
}

/// What pushing a token led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Generation goes on.
    Open,
    /// This stop string is complete; nothing more may be pushed.
    Stopped(String),
}

impl Detokenizer {
    /// A detokeniser that cuts at the first of `stops`.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, pending: Vec::new(), waiting: Vec::new() }
    }

    /// Adds one committed token, with the bytes that it contributes to the text.
    pub(crate) fn push(&mut self, score: TokenScore, tokenizer: &Tokenizer) -> Pushed {
        let old_len = self.pending.len();
        self.pending.extend_from_slice(tokenizer.token_bytes(score.token));
        self.waiting
            .push((self.pending.len(), TokenRecord { id: score.token, logprob: score.logprob, top: score.top }));
        match self.find_stop(old_len) {
            None => Pushed::Open,
            Some((start, stop)) => {
                self.cut(start);
                Pushed::Stopped(stop)
            }
        }
    }

    /// Adds a token that ends the text and contributes none.
    pub(crate) fn push_end(&mut self, score: TokenScore) {
        self.waiting
            .push((self.pending.len(), TokenRecord { id: score.token, logprob: score.logprob, top: score.top }));
    }

    /// Takes everything that is certain by now.
    pub(crate) fn take(&mut self) -> Commit {
        let certain = self.pending.len() - self.held_back();
        self.release(certain)
    }

    /// Takes everything that is left, at the end of the sequence. Bytes of an unfinished code point become U+FFFD.
    pub(crate) fn finish(&mut self) -> Commit {
        let mut commit = self.release(self.pending.len());
        commit.tokens.extend(self.waiting.drain(..).map(|(_, record)| record));
        commit
    }

    fn release(&mut self, len: usize) -> Commit {
        let num_tokens = self.waiting.iter().take_while(|(end, _)| *end <= len).count();
        let tokens = self.waiting.drain(..num_tokens).map(|(_, record)| record).collect();
        for (end, _) in &mut self.waiting {
            *end -= len;
        }
        let text = String::from_utf8_lossy(&self.pending[..len]).into_owned();
        self.pending.drain(..len);
        Commit { text, tokens, hole: 0 }
    }

    /// First stop string that ends in the bytes from `old_len` on. The one that completes first wins, the one that
    /// starts first among those.
    fn find_stop(&self, old_len: usize) -> Option<(usize, String)> {
        let candidates = self.stops.iter().filter_map(|stop| {
            let needle = stop.as_bytes();
            let from = (old_len + 1).saturating_sub(needle.len());
            let start = from + find(&self.pending[from..], needle)?;
            Some((start + needle.len(), start, stop))
        });
        candidates.min_by_key(|&(end, start, _)| (end, start)).map(|(_, start, stop)| (start, stop.clone()))
    }

    /// Drops the text from `start` on, and the tokens that contributed nothing before it.
    fn cut(&mut self, start: usize) {
        self.pending.truncate(start);
        let mut begin = 0;
        self.waiting.retain_mut(|(end, _)| {
            let keep = begin < start || (*end == begin && begin == start);
            begin = *end;
            *end = (*end).min(start);
            keep
        });
    }

    /// Bytes at the end that may still change meaning.
    fn held_back(&self) -> usize {
        let partial_stop = self.stops.iter().map(|stop| partial_match(&self.pending, stop.as_bytes())).max();
        incomplete_utf8(&self.pending).max(partial_stop.unwrap_or(0))
    }
}

/// Offset of the first occurrence of `needle`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Length of the longest proper prefix of `needle` that `text` ends with.
fn partial_match(text: &[u8], needle: &[u8]) -> usize {
    let longest = needle.len().saturating_sub(1).min(text.len());
    (1..=longest).rev().find(|&len| text.ends_with(&needle[..len])).unwrap_or(0)
}

/// Number of bytes at the end that begin a code point without finishing it.
fn incomplete_utf8(text: &[u8]) -> usize {
    let tail = &text[text.len().saturating_sub(3)..];
    // Only the last lead byte matters: what stands before it is complete, or invalid for good.
    let Some(back) = tail.iter().rev().position(|byte| byte & 0xC0 != 0x80) else { return 0 };
    let have = back + 1;
    let need = match tail[tail.len() - have] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    if have < need { have } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(detok: &mut Detokenizer, pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let mut out = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let old_len = detok.pending.len();
            detok.pending.extend_from_slice(piece);
            let id = models::TokenId(i as u32);
            detok.waiting.push((detok.pending.len(), TokenRecord { id, logprob: None, top: Vec::new() }));
            if let Some((start, stop)) = detok.find_stop(old_len) {
                detok.cut(start);
                out.push(detok.finish().text);
                return (out, Some(stop));
            }
            out.push(detok.take().text);
        }
        out.push(detok.finish().text);
        (out, None)
    }

    #[test]
    fn code_points_are_never_split() {
        let mut detok = Detokenizer::new(Vec::new());
        let (out, _) = text_of(&mut detok, &[b"a\xF0", b"\x9F\x98", b"\x80b", b"\xC3"]);
        assert_eq!(out, ["a", "", "\u{1F600}b", "", "\u{FFFD}"]);
    }

    #[test]
    fn invalid_bytes_do_not_block_the_stream() {
        let mut detok = Detokenizer::new(Vec::new());
        let (out, _) = text_of(&mut detok, &[b"\xFFa", b"\x80\x80\x80\x80", b"z"]);
        assert_eq!(out.concat(), "\u{FFFD}a\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}z");
        assert_eq!(out[0], "\u{FFFD}a");
    }

    #[test]
    fn stop_strings_inside_a_token_and_across_tokens() {
        for (pieces, expected) in [
            (vec![&b"one END two"[..]], "one "),
            (vec![&b"one E"[..], b"N", b"D two"], "one "),
            (vec![&b"one EN"[..], b"EN", b"D"], "one EN"),
            (vec![&b"EEND"[..]], "E"),
        ] {
            let mut detok = Detokenizer::new(vec!["END".into()]);
            let (out, stop) = text_of(&mut detok, &pieces);
            assert_eq!((out.concat().as_str(), stop.as_deref()), (expected, Some("END")), "{pieces:?}");
        }
    }

    #[test]
    fn a_partial_stop_string_is_held_back_and_then_released() {
        let mut detok = Detokenizer::new(vec!["\n\nQ:".into(), "xyz".into()]);
        let (out, stop) = text_of(&mut detok, &[b"a\n", b"\nQ", b"uiet x", b"y"]);
        assert_eq!(stop, None);
        assert_eq!(out, ["a", "", "\n\nQuiet ", "", "xy"]);
    }

    #[test]
    fn tokens_leave_with_their_text_and_cut_tokens_never() {
        let mut detok = Detokenizer::new(vec!["END".into()]);
        let record = |i| TokenRecord { id: models::TokenId(i), logprob: None, top: Vec::new() };
        for (i, piece) in [&b"ab"[..], b"cE", b"N"].iter().enumerate() {
            detok.pending.extend_from_slice(piece);
            detok.waiting.push((detok.pending.len(), record(i as u32)));
        }
        let commit = detok.take();
        assert_eq!((commit.text.as_str(), commit.tokens), ("abc", vec![record(0)]));
        let old_len = detok.pending.len();
        detok.pending.extend_from_slice(b"D");
        detok.waiting.push((detok.pending.len(), record(3)));
        let (start, _) = detok.find_stop(old_len).unwrap();
        detok.cut(start);
        let rest = detok.finish();
        assert_eq!((rest.text.as_str(), rest.tokens.len()), ("", 0), "only stop-string text was left");
    }
}
