//! The plain HTTP side: `/metrics` for Prometheus, `/health` for people and load balancers, and the
//! paths on which all of HTTP is found.

use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tower::ServiceBuilder;

use crate::metrics::{Metrics, render};
use crate::state::State;

/// The OpenMetrics content type.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What `/health` says while loading, serving and draining.
pub(crate) const HEALTH: [&str; 3] = ["loading\n", "serving\n", "draining\n"];

/// The routes.
pub fn routes(metrics: Metrics, state: watch::Receiver<State>) -> Router {
    let registry = Arc::new(metrics.registry());
    Router::new()
        .route("/metrics", get(move || ready(page(&registry, &metrics))))
        .route("/health", get(move || ready(health(&state.borrow()))))
}

/// The same routes with slashes doubled or at the end: TRL's clients append `/health/` to whatever
/// address they were given, and wait for ever where that is not found.
pub fn on_plain_paths(routes: Router) -> Router {
    let plain = |mut request: Request| {
        let path = request.uri().path();
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let plain = format!("/{}", names.join("/"));
        if plain != path
            && let Ok(uri) = plain.parse()
        {
            *request.uri_mut() = uri;
        }
        request
    };
    let routes = ServiceBuilder::new().map_request(plain).service(routes);
    Router::new().fallback_service(routes)
}

fn page(registry: &Registry, metrics: &Metrics) -> impl IntoResponse + use<> {
    metrics.measure_memory();
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
