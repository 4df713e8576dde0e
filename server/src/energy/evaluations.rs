//! `POST /v1/energy/evaluations`: judgements of answers, which together with their energy become intelligence per watt.

use std::{sync::Arc, time::Instant};

use axum::{Extension, Json, extract::State, http::StatusCode, response::IntoResponse};
use engine::energy::{Evaluation, EvaluationError};
use serde_json::{Value, json};

use super::{calls::Call, meter::unknown};
use crate::{
    error::ApiError,
    middleware::auth::Caller,
    openai::fields::{Fields, JsonBody, kind_of, read},
    state::AppState,
};

/// Most judgements in one body.
const MAX_ITEMS: usize = 10_000;
/// Longest name of a data set, in characters: it becomes a label of metrics.
const MAX_DATASET_LEN: usize = 64;

/// One judgement.
#[derive(Debug, PartialEq)]
struct Item {
    request_id: String,
    dataset: String,
    score: Option<f64>,
}

/// Counts judgements: all of them, or none if one cannot be.
pub(crate) async fn post(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(fields): JsonBody,
) -> Result<impl IntoResponse, ApiError> {
    let settings = state.settings();
    if caller != Caller::Admin && !(settings.api_keys.is_empty() && settings.admin_keys.is_empty()) {
        let message = "evaluations need an admin key: start with `--admin-key` and send that one";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("admin_key_needed"));
    }
    let items = items(fields)?;
    let calls = find(&state, &items)?;
    for (index, (item, call)) in items.iter().zip(&calls).enumerate() {
        count(&state, item, call).await.map_err(|error| refused(&error, index))?;
    }
    Ok(Json(json!({"version": 1, "accepted": items.len()})))
}

fn find(state: &AppState, items: &[Item]) -> Result<Vec<Arc<Call>>, ApiError> {
    let now = Instant::now();
    let found: Vec<_> = items.iter().map(|item| state.calls().get(&item.request_id, now)).collect();
    let missing = items.iter().zip(&found).filter(|(_, call)| call.is_none());
    let missing: Vec<&str> = missing.map(|(item, _)| item.request_id.as_str()).collect();
    if missing.is_empty() { Ok(found.into_iter().flatten().collect()) } else { Err(unknown(state, &missing)) }
}

async fn count(state: &AppState, item: &Item, call: &Call) -> Result<(), EvaluationError> {
    let monitor = state.energy();
    // What is counted now does not change any more, so the last reading must be in it.
    if monitor.request(&call.tickets).is_some_and(|energy| !energy.is_final) {
        let _settled = monitor.settled(&call.tickets).await;
    }
    monitor.evaluate(&Evaluation {
        request_id: &item.request_id,
        tickets: &call.tickets,
        model: &call.model,
        dataset: &item.dataset,
        score: item.score,
    })
}

fn refused(error: &EvaluationError, index: usize) -> ApiError {
    match error {
        EvaluationError::Score(_) => ApiError::invalid(format!("items[{index}].score"), error.to_string()),
        EvaluationError::TooManyDatasets { .. } => {
            let message = format!("{error}; the {index} items before it are counted");
            ApiError::invalid(format!("items[{index}].dataset"), message).code("too_many_datasets")
        }
        _ => ApiError::invalid(format!("items[{index}]"), error.to_string()),
    }
}

fn items(mut fields: Fields) -> Result<Vec<Item>, ApiError> {
    let list = match fields.value("items") {
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(ApiError::wrong_type("items", format!("expected a list, got {}", kind_of(&other))));
        }
        None => return Err(ApiError::missing("items")),
    };
    fields.finish("`items`")?;
    if list.len() > MAX_ITEMS {
        return Err(ApiError::invalid("items", format!("{} items are more than {MAX_ITEMS}", list.len())));
    }
    list.into_iter().enumerate().map(|(index, value)| item(index, value)).collect()
}

fn item(index: usize, value: Value) -> Result<Item, ApiError> {
    let mut fields = Fields::new(format!("items[{index}]"), value)?;
    let text = |fields: &mut Fields, name: &str| -> Result<String, ApiError> {
        let path = fields.path(name);
        read(&path, fields.value(name).ok_or_else(|| ApiError::missing(&path))?)
    };
    let request_id = text(&mut fields, "request_id")?;
    let dataset = text(&mut fields, "dataset")?;
    let is_name = (1..=MAX_DATASET_LEN).contains(&dataset.chars().count()) && !dataset.contains(char::is_control);
    if !is_name {
        let message = format!("a data set is named by 1 to {MAX_DATASET_LEN} characters");
        return Err(ApiError::invalid(fields.path("dataset"), message));
    }
    // `null` is a judgement too: it could not be made. A score that was left out is a mistake.
    if !fields.has("score") {
        return Err(ApiError::missing(fields.path("score")));
    }
    let path = fields.path("score");
    let score: Option<f64> = fields.take("score")?;
    if let Some(score) = score.filter(|score| !(0.0..=1.0).contains(score)) {
        return Err(ApiError::invalid(path, EvaluationError::Score(score).to_string()));
    }
    fields.finish("`request_id`, `dataset`, `score`")?;
    Ok(Item { request_id, dataset, score })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Vec<Item>, Value> {
        items(Fields::new("", body).unwrap())
            .map_err(|error| serde_json::to_value(error.body()).unwrap()["error"]["param"].clone())
    }

    #[test]
    fn errors_name_the_item() {
        let good = json!({"request_id": "a", "dataset": "gsm8k", "score": 1});
        let read = parse(json!({"items": [good, {"request_id": "b", "dataset": "d", "score": null}]})).unwrap();
        assert_eq!((read[0].score, read[1].score), (Some(1.0), None));
        for (bad, param) in [
            (json!({"dataset": "d", "score": 1}), "items[1].request_id"),
            (json!({"request_id": "b", "score": 1}), "items[1].dataset"),
            (json!({"request_id": "b", "dataset": "", "score": 1}), "items[1].dataset"),
            (json!({"request_id": "b", "dataset": "x".repeat(65), "score": 1}), "items[1].dataset"),
            (json!({"request_id": "b", "dataset": "d"}), "items[1].score"),
            (json!({"request_id": "b", "dataset": "d", "score": 1.5}), "items[1].score"),
            (json!({"request_id": "b", "dataset": "d", "score": "1"}), "items[1].score"),
            (json!({"request_id": "b", "dataset": "d", "score": 1, "judge": "x"}), "items[1].judge"),
            (json!(5), "items[1]"),
        ] {
            assert_eq!(parse(json!({"items": [good, bad]})), Err(json!(param)), "{bad}");
        }
        assert_eq!(parse(json!({})), Err(json!("items")));
        assert_eq!(parse(json!({"items": [], "extra": 1})), Err(json!("extra")));
        assert_eq!(parse(json!({"items": vec![good; MAX_ITEMS + 1]})), Err(json!("items")));
    }
}
