//! JSON as Python's `json.dumps` spells it.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

/// Separators and indentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Style {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
}

impl Style {
    /// Python's defaults where nothing is given: `", "` and `": "`, without the blank after the comma when indented.
    pub(crate) fn new(indent: Option<usize>, separators: Option<Vec<String>>) -> Self {
        let default_item = if indent.is_some() { "," } else { ", " };
        let mut given = separators.unwrap_or_default().into_iter();
        let item_separator = given.next().unwrap_or_else(|| default_item.into());
        let key_separator = given.next().unwrap_or_else(|| ": ".into());
        Self { indent, item_separator, key_separator }
    }
}

/// Writes `value` in `style`.
pub(crate) fn to_string(value: &serde_json::Value, style: &Style) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    let blanks = " ".repeat(style.indent.unwrap_or(0).min(MAX_INDENT));
    let pretty = style.indent.map(|_| PrettyFormatter::with_indent(blanks.as_bytes()));
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Python { style, pretty }))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// Widest indentation; templates use 2 or 4.
const MAX_INDENT: usize = 16;

struct Python<'a> {
    style: &'a Style,
    pretty: Option<PrettyFormatter<'a>>,
}

/// Passes structure to the pretty or the compact formatter.
macro_rules! delegate {
    ($($method:ident),*) => {$(
        fn $method<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            match &mut self.pretty {
                Some(pretty) => pretty.$method(writer),
                None => CompactFormatter.$method(writer),
            }
        }
    )*};
}

impl Formatter for Python<'_> {
    delegate!(begin_array, end_array, end_array_value, begin_object, end_object, end_object_value);

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first, |pretty, writer| pretty.begin_array_value(writer, true))
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first, |pretty, writer| pretty.begin_object_key(writer, true))
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key_separator.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }
}

impl<'a> Python<'a> {
    /// Writes the separator before all but the first item, then the line break and indentation if there is one.
    fn separate<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
        line: impl FnOnce(&mut PrettyFormatter<'a>, &mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.item_separator.as_bytes())?;
        }
        match &mut self.pretty {
            // As the first item the pretty formatter writes the line break without a comma of its own.
            Some(pretty) => line(pretty, writer),
            None => Ok(()),
        }
    }
}

/// Python's `repr` of a finite float: the shortest digits, with an exponent of at least two digits below 1e-4 and
/// from 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn separators_and_floats_are_those_of_python() {
        let value = json!({"a": [1, 2.0, 1e20, 1.5e-7, -0.001], "é": {"b": null, "c": "x\"\n"}, "d": {}, "e": []});
        let dumped = to_string(&value, &Style::new(None, None)).expect("finite");
        let expected = r#"{"a": [1, 2.0, 1e+20, 1.5e-07, -0.001], "é": {"b": null, "c": "x\"\n"}, "d": {}, "e": []}"#;
        assert_eq!(dumped, expected);
        let dumped = to_string(&json!({"a": [1, {}], "b": 2}), &Style::new(Some(2), None)).expect("finite");
        assert_eq!(dumped, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": 2\n}");
    }
}
