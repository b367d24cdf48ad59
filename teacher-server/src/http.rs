//! The HTTP port: `/metrics` for Prometheus, `/health` for people and load balancers, the dialects of
//! other trainers, and the paths on which all of it is found.

use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tonic::transport::server::Connected as _;
use tower::{ServiceBuilder, ServiceExt as _};

use crate::accept::Incoming;
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

/// Serves the routes in HTTP/1.1, and nothing else: HTTP/2 is spoken on the port whose bounds are
/// made for it.
pub async fn serve(mut incoming: Incoming, routes: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    while let Some(connection) = incoming.next().await {
        let (peer, routes) = (connection.connect_info(), routes.clone());
        let answer = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            // As tonic does it for the other port.
            request.extensions_mut().insert(peer.clone());
            routes.clone().oneshot(request.map(Body::new))
        });
        let served = http.serve_connection(TokioIo::new(connection), answer);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection over HTTP ended");
            }
        });
    }
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
