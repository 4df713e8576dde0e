//! Chat templates: Jinja as `transformers` runs it.

use std::{
    error::Error as _,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Kwargs, Serde},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use crate::{
    ModelError,
    text::{json, strftime::strftime},
};

/// Instructions that a rendering may take. Long chats with tools take a few hundred thousand.
const FUEL: u64 = 50_000_000;
/// Names of the two templates of a model.
const DEFAULT: &str = "chat template";
const TOOL_USE: &str = "chat template for tools";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    has_tool_template: bool,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ModelError::BadTemplate { reason: error.to_string() })?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        add_template(&mut environment, DEFAULT, source)?;
        Ok(Self { environment, bos, eos, has_tool_template: false })
    }

    /// Adds the template that some models use instead when the request has tools.
    pub fn with_tool_template(mut self, source: &str) -> Result<Self, ModelError> {
        add_template(&mut self.environment, TOOL_USE, source)?;
        self.has_tool_template = true;
        Ok(self)
    }

    /// Renders an array of messages, with the names of `extra` as further variables.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, ModelError> {
        let name = if tools.is_some() && self.has_tool_template { TOOL_USE } else { DEFAULT };
        let context = Context {
            messages,
            tools,
            documents: None,
            add_generation_prompt,
            bos_token: self.bos.as_deref(),
            eos_token: self.eos.as_deref(),
            extra,
        };
        let template = self.environment.get_template(name).map_err(|error| failure(&error))?;
        template.render(Value::from(Serde(&context))).map_err(|error| failure(&error))
    }
}

/// What a template sees.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a serde_json::Value,
    tools: Option<&'a serde_json::Value>,
    documents: Option<()>,
    add_generation_prompt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bos_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eos_token: Option<&'a str>,
    #[serde(flatten)]
    extra: &'a serde_json::Map<String, serde_json::Value>,
}

fn add_template(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<(), ModelError> {
    environment
        .add_template_owned(name, source.to_string())
        .map_err(|error| ModelError::BadTemplate { reason: error.to_string() })
}

/// What a template said through `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template refused").with_source(Raised(message.into())))
}

/// Tells a refusal of the template from a fault.
fn failure(error: &Error) -> ModelError {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ModelError::TemplateRefused { message: message.clone() };
        }
        cause = error.source();
    }
    ModelError::TemplateFailed { reason: error.to_string() }
}

/// `tojson` with the spelling of Python's `json.dumps(value, ensure_ascii=False)`; models are trained on it.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    // Accepted because templates pass it; the output is never escaped to ASCII.
    let _ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let style = json::Style::new(indent, separators);
    let invalid = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(invalid)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    Ok(Value::from_safe_string(json::to_string(&json, &style).map_err(invalid)?))
}

/// The present in UTC, in the notation of `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, now).map_err(|directive| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know %{directive}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn render(source: &str) -> Result<String, ModelError> {
        let messages = json!([{"role": "user", "content": "hi"}]);
        ChatTemplate::new(source, Some("<s>".into()), None)?.render(&messages, None, true, &Map::new())
    }

    #[test]
    fn a_refusal_carries_the_message_of_the_template() {
        let error = render("{% if true %}{{ raise_exception('no ' ~ messages[0].role) }}{% endif %}");
        assert!(matches!(error, Err(ModelError::TemplateRefused { message }) if message == "no user"));
    }

    #[test]
    fn a_fault_is_not_a_refusal() {
        assert!(matches!(render("{{ nothing.at.all }}"), Err(ModelError::TemplateFailed { .. })));
        assert!(matches!(render("{% for %}"), Err(ModelError::BadTemplate { .. })));
    }

    #[test]
    fn a_template_that_does_not_end_runs_out_of_fuel() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                      {% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(render(nested), Err(ModelError::TemplateFailed { .. })));
    }

    #[test]
    fn an_absent_token_is_undefined_and_absent_tools_are_none() {
        let source = "{{ bos_token }}|{{ eos_token is defined }}|{{ tools is none }}|{{ add_generation_prompt }}";
        assert_eq!(render(source).expect("renders"), "<s>|False|True|True");
    }

    #[test]
    fn the_template_for_tools_serves_requests_with_tools() {
        let template = ChatTemplate::new("plain", None, None).expect("compiles");
        let template = template.with_tool_template("{{ tools | length }} tools").expect("compiles");
        let none = Map::new();
        assert_eq!(template.render(&json!([]), None, true, &none).expect("renders"), "plain");
        assert_eq!(template.render(&json!([]), Some(&json!([1, 2])), true, &none).expect("renders"), "2 tools");
    }
}
