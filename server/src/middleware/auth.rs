//! API keys.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::{error::ApiError, state::AppState};

/// Probes of orchestrators carry no key.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Lets a request pass if it carries one of the keys, if there are keys.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &state.settings().api_keys;
    if !keys.is_empty() && !OPEN.contains(&request.uri().path()) {
        check(request.headers(), keys)?;
    }
    Ok(next.run(request).await)
}

fn check(headers: &HeaderMap, keys: &[String]) -> Result<(), ApiError> {
    let unauthorized = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key");
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthorized("an API key is needed: send `Authorization: Bearer KEY`"))?;
    let given = value.to_str().ok().and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let given = given.ok_or_else(|| unauthorized("the API key must be sent as `Authorization: Bearer KEY`"))?;
    // Every key is compared to its end, so that the time says nothing about them.
    let known = keys.iter().fold(false, |known, key| known | same(key.as_bytes(), given.as_bytes()));
    known.then_some(()).ok_or_else(|| unauthorized("the API key is not valid"))
}

/// Equality in a time that depends on the lengths only.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |diff, (l, r)| diff | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_in_the_right_header_passes() {
        let keys = ["alpha".to_owned(), "beta".to_owned()];
        let with = |value: &str| {
            check(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]), &keys).is_ok()
        };
        assert!(with("Bearer alpha") && with("bearer beta"));
        for bad in ["Bearer alph", "Bearer alphaa", "Bearer ", "Bearer", "Basic alpha", "alpha", "Bearer alpha,beta"] {
            assert!(!with(bad), "{bad}");
        }
        assert!(check(&HeaderMap::new(), &keys).is_err());
    }
}
