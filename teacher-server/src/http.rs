//! The plain HTTP side: `/metrics` for Prometheus and `/health` for people and load balancers.

use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::metrics::render;
use crate::state::State;

/// The OpenMetrics content type.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What `/health` says while loading, serving and draining.
pub(crate) const HEALTH: [&str; 3] = ["loading\n", "serving\n", "draining\n"];

/// The routes.
pub fn routes(registry: Registry, state: watch::Receiver<State>) -> Router {
    let registry = Arc::new(registry);
    Router::new()
        .route("/metrics", get(move || ready(metrics(&registry))))
        .route("/health", get(move || ready(health(&state.borrow()))))
}

fn metrics(registry: &Registry) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], render(registry))
}

fn health(state: &State) -> impl IntoResponse + use<> {
    let [loading, serving, draining] = HEALTH;
    match state {
        State::Loading => (StatusCode::SERVICE_UNAVAILABLE, loading),
        State::Serving(_) => (StatusCode::OK, serving),
        State::Draining => (StatusCode::SERVICE_UNAVAILABLE, draining),
    }
}
