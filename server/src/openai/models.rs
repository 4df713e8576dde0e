//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;

use crate::{
    error::ApiError,
    state::{AppState, Served},
};

/// All names of all models.
#[derive(Debug, Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

/// One name of a model.
#[derive(Debug, Serialize)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest prompt plus completion, in tokens, under the name that other servers use.
    max_model_len: usize,
}

impl Model {
    fn new(served: &Served, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            object: "model",
            created: served.created,
            owned_by: "leapfrog",
            max_model_len: served.engine.model().context_len,
        }
    }
}

/// Lists the names.
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let data = state.models()?.all().map(|(served, id)| Model::new(served, id)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Shows one name, which may hold slashes.
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let models = state.models()?;
    let Path(id) = id.map_err(|rejection| ApiError::invalid("model", rejection.body_text()))?;
    let (served, id) = models.find(Some(id))?;
    Ok(Json(Model::new(served, &id)))
}
