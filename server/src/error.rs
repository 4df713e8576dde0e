//! What a client reads when a request is not answered: one error type, one place that turns it into HTTP.

use std::{fmt, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use engine::{ModelError, RequestError, SubmitError};
use serde::Serialize;

/// An error reply: `{"error": {"message", "type", "param", "code"}}` with a status, all four keys always present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

/// The body of an [`ApiError`]; the last event of a stream that failed has the same shape.
#[derive(Debug, Serialize)]
pub struct ErrorBody {
    error: ErrorFields,
}

#[derive(Debug, Serialize)]
struct ErrorFields {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    /// An error without `param` and `code`.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400: the field `param` cannot be accepted.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).param(param).code("invalid_value")
    }

    /// 400: the field `param` is of another JSON type than it must be.
    pub fn wrong_type(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code("invalid_type")
    }

    /// 400: the field `param` asks for something that this server does not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).param(param).code("unsupported_parameter")
    }

    /// 400: nobody knows the field `param`.
    pub fn unknown(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).param(param).code("unknown_parameter")
    }

    /// 400: the field `param` must be there.
    pub fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        Self::new(StatusCode::BAD_REQUEST, format!("`{param}` is missing")).param(param).code("missing_parameter")
    }

    /// 404: no such model.
    pub fn model_not_found(name: &str, known: &[&str]) -> Self {
        let message = format!("the model `{name}` does not exist; this server has {}", known.join(", "));
        Self::new(StatusCode::NOT_FOUND, message).param("model").code("model_not_found")
    }

    /// 503: not ready to take requests, for the stated reason.
    pub fn unavailable(message: &str, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).code("service_unavailable").retry_after(retry_after)
    }

    /// Names the field at fault.
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets the machine-readable cause.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Renames the field at fault, if it is `from`: the engine knows a `prompt` where a chat client sent `messages`.
    pub fn rename_param(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.param = Some(to.to_owned());
        }
        self
    }

    /// The status line.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        let r#type = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = self.param.clone();
        ErrorBody { error: ErrorFields { message: self.to_string(), r#type, param, code: self.code } }
    }

    fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Many programs show their user the message alone, so it says by itself which field is meant.
        match &self.param {
            Some(param) if !self.message.contains(&format!("`{param}`")) => {
                write!(formatter, "`{param}`: {}", self.message)
            }
            _ => formatter.write_str(&self.message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::EmptyPrompt => Self::invalid("prompt", message),
            SubmitError::PromptTooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, message).param("prompt").code("context_length_exceeded")
            }
            SubmitError::InvalidParameter { param, .. } => Self::invalid(param, message),
            SubmitError::QueueFull { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("rate_limit_exceeded").retry_after(retry_after)
            }
            SubmitError::ShuttingDown => Self::unavailable(&message, DRAIN_RETRY),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error"),
        }
    }
}

/// When to try again while the server drains: a successor needs a few seconds to start.
pub(crate) const DRAIN_RETRY: Duration = Duration::from_secs(5);
/// When to try again while the model loads.
pub(crate) const LOADING_RETRY: Duration = Duration::from_secs(2);

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::ShuttingDown => Self::unavailable(&message, DRAIN_RETRY),
            RequestError::SlowClient => Self::new(StatusCode::REQUEST_TIMEOUT, message).code("slow_client"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error"),
        }
    }
}

/// Errors of tokenizer and chat template: what the client's text caused is the client's, the rest is ours.
impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::TemplateRefused { .. } | ModelError::TemplateFailed { .. } => {
                Self::invalid("messages", message)
            }
            ModelError::Tokenize { .. } => Self::invalid("prompt", message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            // The header counts whole seconds, and 0 would invite a busy loop.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    /// Status, type, code, param and `Retry-After` of every error that the engine can raise.
    #[tokio::test]
    async fn every_engine_error_has_its_reply() {
        const INVALID: &str = "invalid_request_error";
        let full = SubmitError::QueueFull { max_queue: 3, retry_after: Duration::from_millis(1200) };
        let long = SubmitError::PromptTooLong { len: 9, context_len: 8 };
        let range = SubmitError::InvalidParameter { param: "top_p", message: "no".into() };
        let refused = ModelError::TemplateRefused { message: "roles must alternate".into() };
        let table = [
            (SubmitError::EmptyPrompt.into(), 400, INVALID, "invalid_value", Some("prompt"), None),
            (long.into(), 400, INVALID, "context_length_exceeded", Some("prompt"), None),
            (range.into(), 400, INVALID, "invalid_value", Some("top_p"), None),
            (full.into(), 429, "rate_limit_error", "rate_limit_exceeded", None, Some("2")),
            (SubmitError::ShuttingDown.into(), 503, "server_error", "service_unavailable", None, Some("5")),
            (RequestError::Forward("nan".into()).into(), 500, "server_error", "internal_error", None, None),
            (RequestError::Decode("law".into()).into(), 500, "server_error", "internal_error", None, None),
            (RequestError::SlowClient.into(), 408, INVALID, "slow_client", None, None),
            (RequestError::ShuttingDown.into(), 503, "server_error", "service_unavailable", None, Some("5")),
            (refused.into(), 400, INVALID, "invalid_value", Some("messages"), None),
            (ApiError::model_not_found("gpt", &["a"]), 404, INVALID, "model_not_found", Some("model"), None),
            (
                ApiError::unavailable("loading", Duration::ZERO),
                503,
                "server_error",
                "service_unavailable",
                None,
                Some("1"),
            ),
        ];
        for (error, status, kind, code, param, retry_after) in table {
            let error: ApiError = error;
            let message = error.to_string();
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status, "{message}");
            let header = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(header.as_deref(), retry_after, "{message}");
            let body: Value = serde_json::from_slice(&to_bytes(response.into_body(), 1 << 16).await.unwrap()).unwrap();
            let expected = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn the_message_names_the_field_once() {
        assert_eq!(ApiError::invalid("top_p", "2 is above 1").to_string(), "`top_p`: 2 is above 1");
        assert_eq!(ApiError::missing("prompt").to_string(), "`prompt` is missing");
        let renamed = ApiError::invalid("prompt", "the prompt is empty").rename_param("prompt", "messages");
        assert_eq!(renamed.to_string(), "`messages`: the prompt is empty");
    }
}
