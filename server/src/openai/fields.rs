//! Reading a JSON object field by field: `null` is absence, every error names the path, and what nobody asked for is
//! known at the end.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of a JSON object that are not read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where the object lies: empty for the body, else such as `messages[0]`.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object at `path`.
    pub(crate) fn new(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => {
                let message = format!("expected a JSON object, got {}", kind_of(&other));
                Err(if path.is_empty() {
                    ApiError::new(StatusCode::BAD_REQUEST, format!("the body: {message}")).code("invalid_json")
                } else {
                    ApiError::wrong_type(path, message)
                })
            }
        }
    }

    /// The full name of a field of this object.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field out as it is; `null` counts as absent.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field of type `T` out; `null` counts as absent.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.value(name).map(|value| read(&self.path(name), value)).transpose()
    }

    /// Takes an object out, to be read field by field.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        self.value(name).map(|value| Fields::new(self.path(name), value)).transpose()
    }

    /// A 400 if the field is there and `harmless` does not say that it asks for nothing.
    pub(crate) fn refuse(&mut self, name: &str, harmless: impl FnOnce(&Value) -> bool) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !harmless(&value) => {
                let param = self.path(name);
                let message = format!("`{param}` is not supported by this server");
                Err(ApiError::unsupported(param, message))
            }
            _ => Ok(()),
        }
    }

    /// Whether a field is there, be it `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A field that stays where it is; `null` counts as absent.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Calls a field by another name, unless there is one of that name.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if self.peek(to).is_none()
            && let Some(value) = self.map.shift_remove(from)
        {
            self.map.insert(to.to_owned(), value);
        }
    }

    /// Drops fields that do not change the answer.
    pub(crate) fn accept(&mut self, names: &[&str]) {
        for name in names {
            self.map.shift_remove(*name);
        }
    }

    /// Full names of the fields that are left; `null` ones ask for nothing and are not among them.
    pub(crate) fn unread(&self) -> Vec<String> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| self.path(name)).collect()
    }

    /// A 400 if a field is left, listing the `known` ones.
    pub(crate) fn finish(self, known: &str) -> Result<(), ApiError> {
        match self.unread().into_iter().next() {
            Some(param) => {
                let message = format!("unknown field `{param}`; known are {known}");
                Err(ApiError::unknown(param, message))
            }
            None => Ok(()),
        }
    }
}

/// Reads `value`, which lies at `path`, as a `T`.
pub(crate) fn read<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let param = match inner.as_str() {
            "." => path.to_owned(),
            inner if inner.starts_with('[') => format!("{path}{inner}"),
            inner => format!("{path}.{inner}"),
        };
        let message = without_rust_types(&error.inner().to_string());
        match message.starts_with("invalid type") {
            true => ApiError::wrong_type(param, message),
            false => ApiError::invalid(param, message),
        }
    })
}

/// Serde names the Rust type that a field has; clients know those of JSON.
fn without_rust_types(message: &str) -> String {
    let Some((start, expected)) = message.rsplit_once("expected ") else { return message.to_owned() };
    let expected = match expected {
        "u32" | "u64" | "usize" => "a whole number from 0",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" | "a JSON number" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    };
    format!("{start}expected {expected}")
}

/// What a JSON value is, in words.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The body of a request: a JSON object.
#[derive(Debug)]
pub(crate) struct JsonBody(pub(crate) Fields);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let message = "the body must be JSON: send the header `Content-Type: application/json`";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type"));
        }
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        parse(&body)
    }
}

fn parse(body: &[u8]) -> Result<JsonBody, ApiError> {
    let value = serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not valid JSON: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json")
    })?;
    Fields::new("", value).map(JsonBody)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn unreadable(rejection: BytesRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = "the body is larger than this server accepts (`--max-body`)";
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
        }
        _ => ApiError::new(StatusCode::BAD_REQUEST, rejection.body_text()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error_of(error: &ApiError) -> Value {
        serde_json::to_value(error.body()).unwrap()["error"].clone()
    }

    #[test]
    fn errors_name_the_path() {
        let mut fields = Fields::new("", json!({"prompt": [1, 2, "x"], "top_p": "high", "max_tokens": -1})).unwrap();
        let error = fields.take::<Vec<u32>>("prompt").unwrap_err();
        assert_eq!(error_of(&error)["param"], "prompt[2]");
        let error = fields.take::<f32>("top_p").unwrap_err();
        assert_eq!(error_of(&error)["param"], "top_p");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        let error = fields.take::<usize>("max_tokens").unwrap_err();
        assert_eq!(error_of(&error)["param"], "max_tokens");
    }

    #[test]
    fn errors_speak_of_json() {
        for (value, code, message) in [
            (json!("x"), "invalid_type", "`f`: invalid type: string \"x\", expected a whole number from 0"),
            (json!(-1), "invalid_value", "`f`: invalid value: integer `-1`, expected a whole number from 0"),
            (json!(1.5), "invalid_type", "`f`: invalid type: floating point `1.5`, expected a whole number from 0"),
        ] {
            let error = error_of(&read::<usize>("f", value).unwrap_err());
            assert_eq!((&error["code"], &error["message"]), (&json!(code), &json!(message)));
        }
        assert_eq!(
            error_of(&read::<f32>("f", json!([])).unwrap_err())["message"],
            "`f`: invalid type: sequence, expected a number"
        );
        assert_eq!(
            error_of(&read::<Vec<u32>>("f", json!(1)).unwrap_err())["message"],
            "`f`: invalid type: integer `1`, expected a list"
        );
    }

    #[test]
    fn null_is_absence_even_for_unknown_fields() {
        let mut fields = Fields::new("", json!({"top_p": null, "odd": null, "tools": null})).unwrap();
        assert_eq!(fields.take::<f32>("top_p").unwrap(), None);
        assert!(fields.refuse("tools", |_| false).is_ok());
        assert!(fields.unread().is_empty());
    }

    #[test]
    fn nested_names_carry_their_parent() {
        let mut fields = Fields::new("", json!({"decoding": {"width": 4, "depth": 2}})).unwrap();
        let mut decoding = fields.object("decoding").unwrap().unwrap();
        assert_eq!(decoding.take::<usize>("width").unwrap(), Some(4));
        let error = decoding.finish("`width`").unwrap_err();
        assert_eq!(error_of(&error)["param"], "decoding.depth");
        assert_eq!(error_of(&error)["code"], "unknown_parameter");
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for body in ["", "{", "[1]", "\"x\"", "{\"a\":1}}", "nul"] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!(error_of(&error)["code"], "invalid_json", "{body}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(format!("{{\"a\":{deep}").as_bytes()).is_err(), "deep nesting must not overflow the stack");
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(is_json(&with(good)), "{good}");
        }
        for bad in ["text/plain", "application/jsonp", "text/json+json", ""] {
            assert!(!is_json(&with(bad)), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
