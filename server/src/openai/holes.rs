//! A text with holes: what an infill request asks to be filled.

use engine::{AttentionKind, InfillPart, ModelError, ModelInfo, TokenId, Tokenizer};
use serde_json::Value;

use super::fields::{Fields, kind_of};
use crate::error::ApiError;

/// Most holes of a request.
const MAX_HOLES: usize = 64;
/// Most slots of a hole.
const MAX_SLOTS: usize = 4096;

/// Texts and holes, from left to right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HoledText {
    /// No two texts stand side by side, and none is empty.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Slots to fill.
    Hole(usize),
}

/// A text with holes as tokens.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The text before the first hole, with what belongs in front of every text. Empty if the model puts nothing
    /// there and no text precedes.
    pub(super) prompt: Vec<TokenId>,
    pub(super) infill: Vec<InfillPart>,
}

/// A 400 that names `param` and says why, if the model cannot fill holes between given texts.
pub(super) fn check_infill(info: &ModelInfo, param: &str) -> Result<(), ApiError> {
    let why = match (info.attention, info.mask_id) {
        (AttentionKind::Full, Some(_)) => return Ok(()),
        (AttentionKind::Full, None) => "has no mask token",
        (AttentionKind::Causal, _) => "reads from left to right only",
        (AttentionKind::BlockCausal { .. }, _) => "sees no block behind the one that it decodes",
    };
    let message = format!("filling text in needs a diffusion model with full attention; this model {why}");
    Err(ApiError::unsupported(param, message))
}

impl HoledText {
    /// One hole between two texts. A hole without slots is none.
    pub(super) fn between(prefix: String, slots: usize, suffix: String) -> Result<Self, ApiError> {
        if slots > MAX_SLOTS {
            let message = format!("{slots} is more than the {MAX_SLOTS} tokens of a hole");
            return Err(ApiError::invalid("n_predict", message));
        }
        let mut text = Self { parts: Vec::new() };
        text.push(prefix);
        if slots > 0 {
            text.parts.push(Part::Hole(slots));
            text.push(suffix);
        }
        Ok(text)
    }

    /// Reads a list of `{"text": "..."}` and `{"hole": slots}`, which may also be called `mask`.
    pub(super) fn read(name: &str, value: Value) -> Result<Self, ApiError> {
        let Value::Array(list) = value else {
            return Err(ApiError::wrong_type(name, format!("expected a list, got {}", kind_of(&value))));
        };
        let mut text = Self { parts: Vec::new() };
        for (index, value) in list.into_iter().enumerate() {
            text.read_part(&format!("{name}[{index}]"), value)?;
        }
        match text.num_holes() {
            0 => Err(ApiError::invalid(name, "there is no hole to fill; write one as {\"hole\": 8}")),
            1..=MAX_HOLES => Ok(text),
            holes => Err(ApiError::invalid(name, format!("{holes} holes are more than {MAX_HOLES}"))),
        }
    }

    fn read_part(&mut self, path: &str, value: Value) -> Result<(), ApiError> {
        const KNOWN: &str = "`text`, `hole` (or `mask`)";
        let mut fields = Fields::new(path, value)?;
        let given: Option<String> = fields.take("text")?;
        let mut sizes = Vec::new();
        for name in ["hole", "mask"] {
            sizes.extend(fields.take::<usize>(name)?.map(|slots| (fields.path(name), slots)));
        }
        fields.finish(KNOWN)?;
        match (given, sizes.as_slice()) {
            (Some(text), []) => self.push(text),
            (None, [(_, slots)]) if (1..=MAX_SLOTS).contains(slots) => self.parts.push(Part::Hole(*slots)),
            (None, [(param, slots)]) => {
                return Err(ApiError::invalid(param, format!("{slots} slots; a hole has 1 to {MAX_SLOTS}")));
            }
            _ => return Err(ApiError::invalid(path, format!("expected exactly one of {KNOWN}"))),
        }
        Ok(())
    }

    fn push(&mut self, text: String) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            // A border between tokens in the middle of a text would change how the model reads it.
            Some(Part::Text(last)) => last.push_str(&text),
            _ => self.parts.push(Part::Text(text)),
        }
    }

    /// Holes, perhaps none.
    pub(super) fn num_holes(&self) -> usize {
        self.holes().count()
    }

    /// Slots of all holes.
    pub(super) fn num_slots(&self) -> usize {
        self.holes().sum()
    }

    fn holes(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Hole(slots) => Some(*slots),
        })
    }

    /// The same in tokens.
    pub(super) fn encode(&self, tokenizer: &Tokenizer) -> Result<Encoded, ModelError> {
        let (prompt, rest) = match self.parts.split_first() {
            Some((Part::Text(text), rest)) => (text.as_str(), rest),
            _ => ("", self.parts.as_slice()),
        };
        let infill = rest.iter().map(|part| match part {
            Part::Text(text) => tokenizer.encode(text, false).map(InfillPart::Fixed),
            Part::Hole(slots) => Ok(InfillPart::Hole(*slots)),
        });
        Ok(Encoded { prompt: tokenizer.encode(prompt, true)?, infill: infill.collect::<Result<_, _>>()? })
    }

    /// The text with its holes filled; those that are missing at the end of `fillings` stay empty.
    pub(super) fn fill(&self, fillings: &[String]) -> String {
        let mut fillings = fillings.iter();
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Hole(_) => fillings.next().map_or("", String::as_str),
        });
        parts.collect()
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::byte_tokenizer;
    use serde_json::json;

    use super::*;

    fn tokens(text: &str) -> Vec<TokenId> {
        text.bytes().map(|byte| TokenId(byte.into())).collect()
    }

    #[test]
    fn texts_side_by_side_are_one() {
        let list = json!([{"text": "a"}, {"text": "b"}, {"hole": 2}, {"text": ""}, {"mask": 3}, {"text": "c"}]);
        let text = HoledText::read("input", list).unwrap();
        assert_eq!((text.num_holes(), text.num_slots()), (2, 5));
        let encoded = text.encode(&byte_tokenizer().unwrap()).unwrap();
        assert_eq!(encoded.prompt, tokens("ab"));
        let expected = [InfillPart::Hole(2), InfillPart::Hole(3), InfillPart::Fixed(tokens("c"))];
        assert_eq!(encoded.infill, expected);
        assert_eq!(text.fill(&["x".into(), "yz".into()]), "abxyzc");
        assert_eq!(text.fill(&["x".into()]), "abxc");
    }

    #[test]
    fn a_leading_hole_has_the_models_own_prefix_only() {
        let text = HoledText::read("input", json!([{"hole": 2}, {"text": "b"}])).unwrap();
        let encoded = text.encode(&byte_tokenizer().unwrap()).unwrap();
        assert_eq!((encoded.prompt, encoded.infill.len()), (Vec::new(), 2));
    }

    #[test]
    fn one_hole_lies_between_its_neighbours() {
        let text = HoledText::between("a".into(), 4, "b".into()).unwrap();
        let list = json!([{"text": "a"}, {"hole": 4}, {"text": "b"}]);
        assert_eq!(text, HoledText::read("input", list).unwrap());
        assert_eq!(HoledText::between("a".into(), 0, "b".into()).unwrap().num_holes(), 0);
        assert!(HoledText::between("a".into(), MAX_SLOTS + 1, "b".into()).is_err());
    }

    #[test]
    fn errors_name_the_part() {
        let many: Vec<Value> = (0..=MAX_HOLES).map(|_| json!({"hole": 1})).collect();
        for (list, param) in [
            (json!("a"), "input"),
            (json!([]), "input"),
            (json!([{"text": "a"}]), "input"),
            (json!(many), "input"),
            (json!(["a"]), "input[0]"),
            (json!([{"text": "a"}, {}]), "input[1]"),
            (json!([{"text": "a", "hole": 1}]), "input[0]"),
            (json!([{"hole": 1, "mask": 1}]), "input[0]"),
            (json!([{"hole": 0}]), "input[0].hole"),
            (json!([{"mask": 4097}]), "input[0].mask"),
            (json!([{"hole": "x"}]), "input[0].hole"),
            (json!([{"text": 5}]), "input[0].text"),
            (json!([{"hole": 1, "min": 2}]), "input[0].min"),
        ] {
            let error = HoledText::read("input", list.clone()).unwrap_err();
            assert_eq!(serde_json::to_value(error.body()).unwrap()["error"]["param"], param, "{list}");
        }
    }
}
