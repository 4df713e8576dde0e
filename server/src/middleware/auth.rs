//! API keys, and whose request it is.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::{error::ApiError, state::AppState};

/// Probes of orchestrators carry no key.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Whose a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// No key was needed.
    Anyone,
    /// The holder of the API key with this index.
    Key(usize),
    /// The holder of an admin key.
    Admin,
}

impl Caller {
    /// Whether this caller may know what a call of `owner` cost.
    pub(crate) fn may_see(self, owner: Self) -> bool {
        self == Self::Admin || self == owner
    }
}

/// Lets a request pass if it carries one of the keys, if there are keys, and notes whose it is. An admin key is a key for
/// everything.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let settings = state.settings();
    let is_open = settings.api_keys.is_empty() || OPEN.contains(&request.uri().path());
    let caller = match check(request.headers(), &settings.api_keys, &settings.admin_keys) {
        Ok(caller) => caller,
        Err(_) if is_open => Caller::Anyone,
        Err(error) => return Err(error),
    };
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

fn check(headers: &HeaderMap, api_keys: &[String], admin_keys: &[String]) -> Result<Caller, ApiError> {
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
    let find = |keys: &[String]| {
        let is_given = |found: Option<usize>, (index, key): (usize, &String)| {
            if same(key.as_bytes(), given.as_bytes()) { Some(index) } else { found }
        };
        keys.iter().enumerate().fold(None, is_given)
    };
    match (find(admin_keys), find(api_keys)) {
        (Some(_), _) => Ok(Caller::Admin),
        (None, Some(index)) => Ok(Caller::Key(index)),
        (None, None) => Err(unauthorized("the API key is not valid")),
    }
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
        let (keys, admin) = (["alpha".to_owned(), "beta".to_owned()], ["gamma".to_owned()]);
        let caller = |value: &str| {
            check(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]), &keys, &admin).ok()
        };
        let with = |value: &str| caller(value).is_some();
        assert_eq!((caller("Bearer alpha"), caller("bearer beta")), (Some(Caller::Key(0)), Some(Caller::Key(1))));
        assert_eq!(caller("Bearer gamma"), Some(Caller::Admin));
        for bad in ["Bearer alph", "Bearer alphaa", "Bearer ", "Bearer", "Basic alpha", "alpha", "Bearer alpha,beta"] {
            assert!(!with(bad), "{bad}");
        }
        assert!(check(&HeaderMap::new(), &keys, &admin).is_err());
    }
}
