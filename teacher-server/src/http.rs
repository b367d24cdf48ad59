//! The HTTP port: `/metrics` for Prometheus, `/health` for people and load balancers, the dialects of
//! other trainers, and the paths on which all of it is found.

use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tower::ServiceBuilder;

use crate::dialects::{Counter, trl, vllm};
use crate::metrics::{Metrics, render};
use crate::state::State;

/// The OpenMetrics content type.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What `/health` says while loading, serving and draining.
pub(crate) const HEALTH: [&str; 3] = ["loading\n", "serving\n", "draining\n"];

/// Every path of the port and what answers there: the one list, by which a test finds out whether a
/// stranger is let in anywhere.
pub(crate) fn paths(
    metrics: Metrics,
    state: watch::Receiver<State>,
) -> [(&'static str, MethodRouter<Counter>); 5] {
    let registry = Arc::new(metrics.registry());
    [
        ("/metrics", get(move || ready(page(&registry, &metrics)))),
        ("/health", get(move || ready(health(&state.borrow())))),
        ("/get_sequence_logprobs", post(trl::answer)),
        ("/v1/completions", post(vllm::answer)),
        ("/v1/models", get(vllm::models)),
    ]
}

/// The routes.
pub fn routes(metrics: Metrics, state: watch::Receiver<State>, counter: Counter) -> Router {
    let add = |routes: Router<Counter>, (path, answer)| routes.route(path, answer);
    paths(metrics, state).into_iter().fold(Router::new(), add).with_state(counter)
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
