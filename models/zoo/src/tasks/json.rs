//! Sentences into JSON records.
//!
//! A record is told by an opening sentence, which covers some of its fields, and one sentence for each other field, in
//! any order. A field that is left out is null.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    Draft, Wrong,
    draw::{Draw, articles, capital, fill, variants},
    json_schemas::{Field, Kind, SCHEMAS, Schema},
};

/// What introduces the text; the last slot is the text.
const REQUESTS: &str = "[Make JSON|Turn this into JSON|Write this as JSON|Give me JSON|To JSON|JSON please|\
    Convert to JSON|\
    [Extract|Write|Give me|Return] the {record} as JSON|[Make|Write|Give me] a JSON record of the {record}|\
    JSON for this {record}]: {text}";

/// The request after the text.
const REQUESTS_AFTER: &str = "{text} [Make JSON.|Turn this into JSON.|Write this as JSON.|Give me JSON.|\
    As JSON, please.|\
    [Extract|Write|Give me|Return] the {record} as JSON.]";

/// The phrases before the slots are filled: requests times opening and other sentences, in one order.
pub(super) fn num_templates() -> u64 {
    let requests = variants(REQUESTS) + variants(REQUESTS_AFTER);
    SCHEMAS
        .iter()
        .map(|schema| requests * schema.openings.iter().map(|opening| texts(schema, opening)).sum::<u64>())
        .sum()
}

fn texts(schema: &Schema, opening: &str) -> u64 {
    let rest = schema.fields.iter().filter(|field| !covers(opening, field));
    variants(opening) * rest.map(sentence_variants).product::<u64>()
}

fn sentence_variants(field: &Field) -> u64 {
    match field.kind {
        Kind::Flag { yes, no } => variants(yes) + variants(no),
        _ => variants(field.sentence),
    }
}

fn covers(opening: &str, field: &Field) -> bool {
    opening.contains(&format!("{{{}}}", field.key))
}

/// A record of one of the schemas.
pub(super) fn draft(draw: &mut Draw) -> Draft {
    let schema = draw.pick(SCHEMAS);
    let opening = draw.pick(schema.openings);
    let opening = draw.choose(opening);
    let told: Vec<&Field> = schema.fields.iter().filter(|field| !covers(&opening, field)).collect();
    let missing = if draw.chance(15) && !told.is_empty() { Some(draw.pick(&told).key) } else { None };

    let person = draw.pick(super::words::PEOPLE);
    let mut record = Map::new();
    let mut slots = vec![("She", person.capital_subject().to_owned()), ("record", schema.record.to_owned())];
    for field in schema.fields {
        let value = match field.kind {
            Kind::Person => Value::from(person.name),
            Kind::Word(list) => Value::from(draw.pick(list)),
            Kind::Number(low, high) => Value::from(draw.int(low, high)),
            Kind::Flag { .. } => Value::from(draw.chance(50)),
        };
        if let Some(number) = value.as_i64() {
            slots.push((field.key, number.to_string()));
        } else if let Some(word) = value.as_str() {
            slots.push((field.key, word.to_owned()));
        }
        record.insert(field.key.to_owned(), if missing == Some(field.key) { Value::Null } else { value });
    }
    let slots: Vec<(&str, &str)> = slots.iter().map(|slot| (slot.0, slot.1.as_str())).collect();

    let mut sentences = vec![capital(&fill(&opening, &slots))];
    for field in draw.shuffled(&told) {
        if missing != Some(field.key) {
            let phrase = match (field.kind, &record[field.key]) {
                (Kind::Flag { yes, .. }, Value::Bool(true)) => yes,
                (Kind::Flag { no, .. }, _) => no,
                _ => field.sentence,
            };
            sentences.push(capital(&draw.say(phrase, &slots)));
        }
    }
    let text = articles(&sentences.join(" "));
    let request = if draw.chance(70) { REQUESTS } else { REQUESTS_AFTER };
    let question = draw.say(request, &[("record", schema.record), ("text", &text)]);
    let answer = Value::Object(record).to_string();
    Draft { question, key: answer.clone(), answer }
}

/// Accepts one JSON object with the keys and values of the answer, whatever its white space and order.
pub(super) fn check(answer: &str, output: &str) -> Result<(), Wrong> {
    let got: Members = serde_json::from_str(output.trim()).map_err(Wrong::Json)?;
    let expected: Members = serde_json::from_str(answer).map_err(Wrong::Json)?;
    if got.count == expected.count && got.map == expected.map { Ok(()) } else { Err(Wrong::text(answer, output)) }
}

/// An object that remembers how many members it had, so that a repeated key is seen.
struct Members {
    map: Map<String, Value>,
    count: usize,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
        let mut members = Members { map: Map::new(), count: 0 };
        while let Some((key, value)) = access.next_entry()? {
            members.map.insert(key, value);
            members.count += 1;
        }
        Ok(members)
    }
}
