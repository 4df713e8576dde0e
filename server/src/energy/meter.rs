//! What one call carries along to say what it cost.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, HeaderName, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use engine::energy::{Ticket, Unavailable};

use super::{
    calls::Call,
    usage::{EnergyReport, Work},
};
use crate::{args::EnergyUsage, error::ApiError, middleware::auth::Caller, state::AppState};

const WANTED: HeaderName = HeaderName::from_static("x-energy");

/// Who sends a request, and what its header says of energy.
#[derive(Debug)]
pub(crate) struct Asker {
    caller: Caller,
    headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get().copied().unwrap_or(Caller::Anyone);
        let headers = parts.headers.get_all(WANTED).iter().map(|value| (WANTED, value.clone())).collect();
        Ok(Self { caller, headers })
    }
}

impl Asker {
    /// The meter of this request; `in_body` is what its body says.
    pub(crate) fn meter(self, state: &AppState, in_body: bool) -> Result<Meter, ApiError> {
        let mut asked = in_body;
        for value in self.headers.values() {
            asked |= match value.as_bytes() {
                b"1" | b"true" => true,
                b"0" | b"false" => false,
                _ => return Err(ApiError::invalid(WANTED.as_str(), "the header `x-energy` is neither 1 nor 0")),
            };
        }
        let wanted = match state.settings().energy_usage {
            EnergyUsage::Off => false,
            EnergyUsage::OptIn => asked,
            EnergyUsage::On => true,
        };
        Ok(Meter { state: state.clone(), caller: self.caller, wanted })
    }
}

/// Says what one call cost when it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    state: AppState,
    caller: Caller,
    wanted: bool,
}

impl Meter {
    /// The meter of a call that nobody asks about.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        use crate::{middleware::host_guard::HostGuard, settings::HttpSettings};
        Self { state: AppState::new(HttpSettings::default(), HostGuard::Open), caller: Caller::Anyone, wanted: false }
    }

    /// Whether the reply is to say it.
    pub(crate) fn wanted(&self) -> bool {
        self.wanted
    }

    /// The call has ended: from now on its reply's id is known.
    pub(crate) fn end(&self, id: &str, model: &str, tickets: Vec<Ticket>, work: Work) -> Arc<Call> {
        let call = Arc::new(Call { caller: self.caller, model: model.to_owned(), tickets, work });
        self.state.calls().insert(id, call.clone(), Instant::now());
        call
    }

    /// What the call cost. Waits until every sensor of the basis has been read after its end, at most for the settle
    /// time.
    pub(crate) async fn report(&self, call: &Call) -> EnergyReport {
        let forgotten = || unknown_energy(&self.state, Unavailable::Stale, call);
        report(&self.state, call).await.unwrap_or_else(forgotten)
    }
}

/// `None` if the monitor has forgotten the call.
async fn report(state: &AppState, call: &Call) -> Option<EnergyReport> {
    if call.tickets.is_empty() {
        let reason = state.energy().snapshot().status.err().unwrap_or(Unavailable::Disabled);
        return Some(unknown_energy(state, reason, call));
    }
    let energy = state.energy().settled(&call.tickets).await?;
    Some(EnergyReport::new(energy, &call.work))
}

fn unknown_energy(state: &AppState, reason: Unavailable, call: &Call) -> EnergyReport {
    EnergyReport::unknown(reason, state.energy().snapshot().basis, &call.work)
}

/// `GET /v1/energy/requests/{id}`: what a call cost, for whoever made it.
pub(crate) async fn show(
    State(state): State<AppState>,
    Path(id): Path<String>,
    asker: Asker,
) -> Result<Response, ApiError> {
    if state.settings().energy_usage == EnergyUsage::Off {
        let message = "this server tells nobody what requests cost (`--energy-usage off`)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("energy_usage_off"));
    }
    // A call of somebody else is as unknown as one that never was.
    let known = state.calls().get(&id, Instant::now());
    let call = known.filter(|call| asker.caller.may_see(call.caller)).ok_or_else(|| unknown(&state, &[&id]))?;
    let report = report(&state, &call).await.ok_or_else(|| unknown(&state, &[&id]))?;
    Ok(axum::Json(report).into_response())
}

/// 404: nobody knows calls with these ids.
pub(super) fn unknown(state: &AppState, ids: &[&str]) -> ApiError {
    /// Most ids that a message names.
    const MAX_NAMED: usize = 10;
    /// Most characters of each.
    const MAX_LEN: usize = 80;
    let named: Vec<String> =
        ids.iter().take(MAX_NAMED).map(|id| format!("`{}`", id.chars().take(MAX_LEN).collect::<String>())).collect();
    let more = ids.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let span = state.calls().retention();
    let message = format!(
        "no call that ended less than {span:?} ago (`--energy-retention`) has the id {}{more}",
        named.join(", ")
    );
    ApiError::new(StatusCode::NOT_FOUND, message).code("request_not_found")
}
