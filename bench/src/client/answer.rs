//! What came back for a request, and when.

use std::{fmt, time::Instant};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeTuple};
use serde_json::Value;

use super::{
    shown,
    wire::{Chunk, Decoding, Usage},
};

/// An event of a stream that brought text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextEvent {
    /// Nanoseconds after the request was sent.
    pub(crate) at_ns: u64,
    /// Unicode characters of the text.
    pub(crate) num_chars: u32,
    /// Tokens of the event, if the server tells them (log-probabilities, or a usage that goes on).
    pub(crate) num_tokens: Option<u32>,
}

/// As `[microseconds after the request, characters, tokens or null]`: there are many of them.
impl Serialize for TextEvent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut tuple = to.serialize_tuple(3)?;
        tuple.serialize_element(&(self.at_ns / 1000))?;
        tuple.serialize_element(&self.num_chars)?;
        tuple.serialize_element(&self.num_tokens)?;
        tuple.end()
    }
}

/// Why there is no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// No connection, or it broke before the head of the answer.
    Connect,
    /// A status that says no.
    Status,
    /// No whole answer in the time that was given.
    Timeout,
    /// The server ended the stream with an error.
    ServerError,
    /// Neither a stream of chunks nor an answer.
    Garbage,
    /// The connection ended in the middle of the answer.
    CutShort,
    /// More bytes than any answer has.
    TooLong,
    /// The run was ended by its user.
    Interrupted,
}

impl FailureKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::ServerError => "server_error",
            Self::Garbage => "garbage",
            Self::CutShort => "cut_short",
            Self::TooLong => "too_long",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A failure with its cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)
    }
}

impl Failure {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failure before the head of the answer.
    pub(super) fn of_sending(error: reqwest::Error) -> Self {
        Self::new(FailureKind::Connect, chain(error))
    }

    /// A failure behind it.
    pub(super) fn of_reading(error: reqwest::Error) -> Self {
        Self::new(FailureKind::CutShort, chain(error))
    }

    /// The user's own doing.
    pub(crate) fn interrupted() -> Self {
        Self::new(FailureKind::Interrupted, "the run was ended")
    }
}

/// An error with its causes, without the address.
fn chain(error: reqwest::Error) -> String {
    format!("{:#}", super::plain(error))
}

/// An answer, whole or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Answer {
    #[serde(skip)]
    pub(crate) sent: Instant,
    pub(crate) status: Option<u16>,
    /// When the head of the answer was there, in nanoseconds after the request was sent, like all times here.
    pub(crate) head_ns: Option<u64>,
    /// Events with text; one if the answer was no stream.
    pub(crate) events: Vec<TextEvent>,
    /// Whether the text came in events.
    pub(crate) is_stream: bool,
    /// The end of the answer: its last event with a choice. A usage that follows is no part of it.
    pub(crate) end_ns: Option<u64>,
    /// When the last byte was read, or the failure was known.
    pub(crate) closed_ns: u64,
    pub(crate) finish_reason: Option<String>,
    pub(crate) usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decoding: Option<Decoding>,
    /// 64-bit FNV-1a of the text.
    pub(crate) text_fnv1a: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Failure>,
}

impl Answer {
    /// An answer that has not come.
    pub(crate) fn empty(sent: Instant) -> Self {
        Self {
            sent,
            status: None,
            head_ns: None,
            events: Vec::new(),
            is_stream: false,
            end_ns: None,
            closed_ns: 0,
            finish_reason: None,
            usage: Usage::default(),
            decoding: None,
            text_fnv1a: 0xcbf2_9ce4_8422_2325,
            text: None,
            failure: None,
        }
    }

    /// A request that was given up by its user.
    pub(crate) fn interrupted(sent: Instant) -> Self {
        Self { closed_ns: nanos(sent, Instant::now()), failure: Some(Failure::interrupted()), ..Self::empty(sent) }
    }
}

fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// Reads an answer, event by event.
#[derive(Debug)]
pub(super) struct Reader {
    answer: Answer,
    has_done: bool,
    /// Tokens that the server has counted so far, if it does so in every chunk.
    counted: u64,
}

impl Reader {
    pub(super) fn new(keeps_text: bool) -> Self {
        let answer = Answer { text: keeps_text.then(String::new), ..Answer::empty(Instant::now()) };
        Self { answer, has_done: false, counted: 0 }
    }

    pub(super) fn head(&mut self, status: u16) {
        self.answer.status = Some(status);
        self.answer.head_ns = Some(nanos(self.answer.sent, Instant::now()));
    }

    /// A line of a stream, without its end.
    pub(super) fn line(&mut self, line: &[u8], now: Instant) -> Result<(), Failure> {
        self.answer.is_stream = true;
        let Some(data) = line.strip_prefix(b"data:") else {
            let is_field = [&b":"[..], b"event:", b"id:", b"retry:"].iter().any(|field| line.starts_with(field));
            if line.is_empty() || is_field {
                return Ok(());
            }
            return Err(garbage("not a line of an event stream", line));
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.has_done = true;
            return Ok(());
        }
        let chunk = serde_json::from_slice(data).map_err(|_| garbage("an event is not a chunk", data))?;
        self.chunk(chunk, now)
    }

    /// A whole answer.
    pub(super) fn object(&mut self, body: &[u8], now: Instant) -> Result<(), Failure> {
        let chunk: Chunk<'_> =
            serde_json::from_slice(body).map_err(|_| garbage("the answer is not a completion", body))?;
        if chunk.choices.is_none() && chunk.error.is_none() {
            return Err(garbage("the answer has no choices", body));
        }
        self.has_done = true;
        self.chunk(chunk, now)
    }

    fn chunk(&mut self, chunk: Chunk<'_>, now: Instant) -> Result<(), Failure> {
        if let Some(error) = &chunk.error {
            let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            return Err(Failure::new(FailureKind::ServerError, shown(&message)));
        }
        let at_ns = nanos(self.answer.sent, now);
        if let Some(choice) = chunk.choices.as_ref().and_then(|choices| choices.first()) {
            self.answer.end_ns = Some(at_ns);
            let mut num_chars = 0;
            for text in choice.texts() {
                num_chars += text.chars().count();
                let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                self.answer.text_fnv1a = text.as_bytes().iter().fold(self.answer.text_fnv1a, step);
                if let Some(kept) = &mut self.answer.text {
                    kept.push_str(text);
                }
            }
            if num_chars > 0 {
                let of_probabilities = choice.logprobs.as_ref().and_then(|logprobs| logprobs.num_tokens());
                let of_usage = chunk.usage.as_ref().and_then(|usage| usage.completion_tokens);
                let num_tokens = of_probabilities.or_else(|| {
                    let new = of_usage?.checked_sub(self.counted)?;
                    self.counted += new;
                    usize::try_from(new).ok()
                });
                let num_tokens = num_tokens.and_then(|count| u32::try_from(count).ok());
                let num_chars = u32::try_from(num_chars).unwrap_or(u32::MAX);
                self.answer.events.push(TextEvent { at_ns, num_chars, num_tokens });
            }
            if let Some(reason) = &choice.finish_reason {
                self.answer.finish_reason = Some(reason.clone().into_owned());
            }
        }
        if let Some(usage) = chunk.usage {
            self.answer.usage = usage;
        }
        if let Some(decoding) = chunk.leapfrog.filter(|decoding| decoding.forward_passes.is_some()) {
            self.answer.decoding = Some(decoding);
        }
        Ok(())
    }

    /// The answer, now that no more is read.
    pub(super) fn finish(mut self, end: Result<(), Failure>) -> Answer {
        self.answer.closed_ns = nanos(self.answer.sent, Instant::now());
        self.answer.failure = match end {
            Err(failure) => Some(failure),
            // Some servers leave out the last line, which carries nothing.
            Ok(()) if self.has_done || self.answer.finish_reason.is_some() => None,
            Ok(()) => Some(Failure::new(FailureKind::CutShort, "the stream ended without a finish reason or [DONE]")),
        };
        self.answer
    }
}

fn garbage(what: &str, bytes: &[u8]) -> Failure {
    Failure::new(FailureKind::Garbage, format!("{what}: {}", shown(&String::from_utf8_lossy(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Answer {
        let mut reader = Reader::new(true);
        let mut end = Ok(());
        for line in lines {
            end = reader.line(line.as_bytes(), Instant::now());
            if end.is_err() {
                break;
            }
        }
        reader.finish(end)
    }

    #[test]
    fn a_stream_of_a_chat() {
        let answer = read(&[
            r#"data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}"#,
            "",
            ": keep-alive",
            r#"data: {"choices":[{"index":0,"delta":{"content":"a\n\u00e9"},"finish_reason":null}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{},"logprobs":null}],"leapfrog":{"frame":{"step":7}}}"#,
            r#"data: {"choices":[{"index":0,"delta":{"reasoning_content":"bc"}}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"leapfrog":{"forward_passes":3,"acceptance_histogram":[1,2],"tokens_per_forward":null}}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4},"energy":{"status":"measured","energy_joules":1.5}}}"#,
            "data: [DONE]",
        ]);
        assert_eq!(answer.failure, None);
        assert_eq!(answer.text.as_deref(), Some("a\n\u{e9}bc"));
        assert_eq!(answer.events.iter().map(|event| event.num_chars).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        assert_eq!((answer.usage.prompt_tokens, answer.usage.completion_tokens), (Some(5), Some(6)));
        assert_eq!((answer.usage.cached_tokens(), answer.usage.joules()), (Some(4), Some(1.5)));
        let decoding = answer.decoding.unwrap();
        assert_eq!((decoding.forward_passes, decoding.passes_and_tokens()), (Some(3), (3, 5)));
        let other = read(&[r#"data: {"choices":[{"text":"a\n\u00e9bc","finish_reason":"length"}]}"#]);
        assert_eq!(other.text_fnv1a, answer.text_fnv1a, "the same text, however it was cut");
        assert_eq!(other.failure, None, "a finish reason is an end, too");
    }

    #[test]
    fn tokens_of_an_event_are_those_that_the_server_tells() {
        let answer = read(&[
            r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":2}}"#,
            r#"data: {"choices":[{"delta":{"content":"b"}}],"usage":{"completion_tokens":5}}"#,
            r#"data: {"choices":[{"delta":{"content":"c"},"logprobs":{"content":[{"token":"c"},{"token":""}]}}]}"#,
            r#"data: {"choices":[{"delta":{"content":"d"}}]}"#,
        ]);
        let tokens: Vec<_> = answer.events.iter().map(|event| event.num_tokens).collect();
        assert_eq!(tokens, [Some(2), Some(3), Some(2), None]);
    }

    #[test]
    fn what_is_no_whole_answer_says_why() {
        let kind = |lines: &[&str]| read(lines).failure.map(|failure| (failure.kind, failure.message));
        let (garbage, message) = kind(&["<html>"]).unwrap();
        assert_eq!((garbage, message.as_str()), (FailureKind::Garbage, "not a line of an event stream: <html>"));
        assert_eq!(kind(&["data: {\"choices\": 7}"]).unwrap().0, FailureKind::Garbage);
        let begun = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
        assert_eq!(kind(&[begun]).unwrap().0, FailureKind::CutShort);
        let failed = [begun, r#"data: {"error":{"message":"out of pages","code":null}}"#];
        assert_eq!(kind(&failed), Some((FailureKind::ServerError, "out of pages".into())));
        assert_eq!(kind(&["data: {\"error\":\"no\"}"]), Some((FailureKind::ServerError, "\"no\"".into())));
    }
}
