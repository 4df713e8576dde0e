//! The messages of a chat, as chat templates want them.

use serde_json::{Map, Value};

use super::fields::{Fields, kind_of, read};
use crate::error::ApiError;

const ROLES: &str = "system, developer, user, assistant, tool";
/// Parts of a message that templates may use besides role and content.
const PASSED_ON: [&str; 4] = ["name", "tool_call_id", "reasoning_content", "refusal"];

/// Reads the field `messages`: a list of objects whose `content` becomes one string each. Names of fields that nothing
/// reads are added to `unread`.
pub(super) fn take(fields: &mut Fields, unread: &mut Vec<String>) -> Result<Value, ApiError> {
    let list = match fields.value("messages") {
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(ApiError::wrong_type("messages", format!("expected a list, got {}", kind_of(&other))));
        }
        None => return Err(ApiError::missing("messages")),
    };
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "there must be at least one message"));
    }
    let messages = list.into_iter().enumerate().map(|(index, value)| {
        let mut fields = Fields::new(format!("messages[{index}]"), value)?;
        let message = message(&mut fields)?;
        unread.append(&mut fields.unread());
        Ok(Value::Object(message))
    });
    Ok(Value::Array(messages.collect::<Result<_, ApiError>>()?))
}

fn message(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let role: String = fields.take("role")?.ok_or_else(|| ApiError::missing(fields.path("role")))?;
    // Templates know the older name only.
    let known = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        other => {
            let message = format!("the role `{other}` is not known; roles are {ROLES}");
            return Err(ApiError::invalid(fields.path("role"), message));
        }
    };
    for name in ["audio", "function_call"] {
        fields.refuse(name, |_| false)?;
    }
    let calls = fields.value("tool_calls");
    let content = match fields.value("content") {
        Some(value) => Value::String(text(&fields.path("content"), value)?),
        None if role == "assistant" && calls.is_some() => Value::Null,
        None => return Err(ApiError::missing(fields.path("content"))),
    };
    let mut message = Map::new();
    message.insert("role".to_owned(), known.into());
    message.insert("content".to_owned(), content);
    for name in PASSED_ON {
        if let Some(text) = fields.take::<String>(name)? {
            message.insert(name.to_owned(), text.into());
        }
    }
    if let Some(calls) = calls {
        message.insert("tool_calls".to_owned(), tool_calls(&fields.path("tool_calls"), calls)?);
    }
    Ok(message)
}

/// A string, or a list of text parts that are joined.
fn text(path: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            parts.map(|(index, part)| text_part(format!("{path}[{index}]"), part)).collect()
        }
        other => {
            let message = format!("expected a string or a list of parts, got {}", kind_of(&other));
            Err(ApiError::wrong_type(path, message))
        }
    }
}

fn text_part(path: String, part: Value) -> Result<String, ApiError> {
    let mut fields = Fields::new(path, part)?;
    let kind: String = fields.take("type")?.ok_or_else(|| ApiError::missing(fields.path("type")))?;
    let name = match kind.as_str() {
        "text" => "text",
        "refusal" => "refusal",
        other => {
            let message = format!("parts of type `{other}` are not supported; send text");
            return Err(ApiError::unsupported(fields.path("type"), message));
        }
    };
    fields.take(name)?.ok_or_else(|| ApiError::missing(fields.path(name)))
}

/// Earlier tool calls. Clients send the arguments as JSON text; templates write them out themselves, so they get the
/// object if it is one.
fn tool_calls(path: &str, value: Value) -> Result<Value, ApiError> {
    let mut calls: Vec<Map<String, Value>> = read(path, value)?;
    for call in &mut calls {
        let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
            continue;
        };
        if let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok()) {
            *arguments = Value::Object(object);
        }
    }
    Ok(calls.into_iter().map(Value::Object).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(messages: Value) -> Result<(Value, Vec<String>), ApiError> {
        let mut fields = Fields::new("", json!({ "messages": messages }))?;
        let mut unread = Vec::new();
        take(&mut fields, &mut unread).map(|messages| (messages, unread))
    }

    fn param_of(messages: Value) -> Value {
        serde_json::to_value(parse(messages).unwrap_err().body()).unwrap()["error"]["param"].clone()
    }

    #[test]
    fn parts_are_joined_and_roles_are_the_templates_own() {
        let (messages, unread) = parse(json!([
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Hi", "name": "ann", "odd": 1, "audio": null},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ]))
        .unwrap();
        assert_eq!(messages[0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!(messages[1], json!({"role": "user", "content": "Hi", "name": "ann"}));
        assert_eq!(messages[2]["content"], Value::Null);
        assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[3]["tool_call_id"], "call_1");
        assert_eq!(unread, ["messages[1].odd"]);
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(param_of(json!("Hi")), "messages");
        assert_eq!(param_of(json!([])), "messages");
        assert_eq!(param_of(json!(["Hi"])), "messages[0]");
        assert_eq!(param_of(json!([{"content": "Hi"}])), "messages[0].role");
        assert_eq!(param_of(json!([{"role": "king", "content": "Hi"}])), "messages[0].role");
        assert_eq!(param_of(json!([{"role": "user"}])), "messages[0].content");
        assert_eq!(param_of(json!([{"role": "user", "content": 5}])), "messages[0].content");
        let image = json!([{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]}]);
        assert_eq!(param_of(image), "messages[0].content[1].type");
        let call = json!([{"role": "assistant", "tool_calls": [{}, 1]}]);
        assert_eq!(param_of(call), "messages[0].tool_calls[1]");
    }
}
