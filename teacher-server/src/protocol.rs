//! Requests that are no gRPC calls, by their method or their content type: refused as the protocol
//! says, before anything reads them. tonic itself would take any of them for a call.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::Status;

/// Middleware of every call: lets gRPC calls through, and names the method that is not there.
pub async fn check(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        let text = format!("gRPC calls are POST requests, this is {}\n", request.method());
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")], text).into_response();
    }
    if !is_grpc(request.headers()) {
        let text =
            "this port speaks gRPC: content-type application/grpc or application/grpc+proto\n";
        let accepts = [(header::ACCEPT, "application/grpc")];
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, accepts, text).into_response();
    }
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    match is_unexplained(response.headers()) {
        true => Status::unimplemented(format!(
            "this server has no method {path}; it lists those it has (reflection: grpcurl HOST list)"
        ))
        .into_http::<Body>(),
        false => response,
    }
}

/// Whether the messages are protobuf in gRPC's frames; parameters may follow.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim_end);
    kind.is_some_and(|kind| {
        ["application/grpc", "application/grpc+proto"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(kind))
    })
}

/// What tonic answers to a path it has no method for: UNIMPLEMENTED, without a word.
fn is_unexplained(headers: &HeaderMap) -> bool {
    let unimplemented = tonic::Code::Unimplemented as i32;
    let status = headers.get(Status::GRPC_STATUS).and_then(|code| code.to_str().ok()?.parse().ok());
    status == Some(unimplemented) && !headers.contains_key(Status::GRPC_MESSAGE)
}
