//! A guard against DNS rebinding: a web page must not reach a server on the reader's own machine by giving that
//! machine's address to a name of its own. Such a request carries the foreign name in its `Host` header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use crate::{error::ApiError, state::AppState};

/// Which names a request may call the server by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostGuard {
    /// Any: the server listens to the network and its operator listed no names.
    Open,
    /// This machine's own names, and these.
    Listed(Vec<String>),
}

impl HostGuard {
    /// The guard of a server that listens on `address`.
    pub fn new(address: SocketAddr, allowed: &[String]) -> Self {
        if address.ip().is_loopback() || !allowed.is_empty() { Self::Listed(allowed.to_vec()) } else { Self::Open }
    }

    /// `authority` is a host with or without a port.
    fn allows(&self, authority: &str) -> bool {
        let Self::Listed(allowed) = self else { return true };
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        is_local(&host) || allowed.contains(&host)
    }
}

fn is_local(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost"
        || host.ends_with(".localhost")
        || address.parse::<Ipv4Addr>().is_ok_and(|address| IpAddr::V4(address).is_loopback())
        || address.parse::<Ipv6Addr>().is_ok_and(|address| IpAddr::V6(address).is_loopback())
}

/// Answers 403 if the request calls the server by a name that is not its own. A request without any name does not come
/// from a browser and passes.
pub(crate) async fn check_host(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or(""));
    let named = request.uri().authority().map(Authority::as_str).or(header);
    if let Some(name) = named.filter(|name| !state.host_guard().allows(name)) {
        let name: String = name.chars().take(100).collect();
        let message = format!("this server does not answer to the host `{name}`; allow it with --allowed-host");
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("host_not_allowed"));
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_server_answers_to_local_names_only() {
        let guard = HostGuard::new("127.0.0.1:8080".parse().unwrap(), &["gpu.example".to_owned()]);
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:1",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]:80",
            "a.localhost",
            "GPU.example:9",
        ] {
            assert!(guard.allows(good), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "",
            "local host",
            "evil.example:8080",
        ] {
            assert!(!guard.allows(bad), "{bad}");
        }
    }

    #[test]
    fn an_open_server_answers_to_any_name_unless_told_otherwise() {
        let open = "0.0.0.0:8080".parse().unwrap();
        assert!(HostGuard::new(open, &[]).allows("anything.example"));
        let listed = HostGuard::new(open, &["api.example".to_owned()]);
        assert!(listed.allows("api.example") && listed.allows("localhost") && !listed.allows("evil.example"));
    }
}
