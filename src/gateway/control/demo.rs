//! The demo page: files embedded in the binary.
//!
//! In: `src/gateway/demo` at build time. Out: GET `/demo` and what the page loads, nothing from other hosts.
//! Invariant: the page learns port and path from attributes, escaped; its policy forbids inline scripts.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{ControlOptions, Plane};

const PAGE: &str = include_str!("../demo/index.html");
const SCRIPT: &str = include_str!("../demo/demo.js");
const STYLE: &str = include_str!("../demo/demo.css");
const SDK_JSON: &str = include_str!("../demo/vendor/centrifuge.js");
const SDK_PROTOBUF: &str = include_str!("../demo/vendor/centrifuge.protobuf.js");
const SDK_LICENSE: &str = include_str!("../demo/vendor/LICENSE");

/// Scripts and styles come from here alone; the page may connect to the client port, which is another origin.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src *; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

pub(super) fn routes(options: &ControlOptions) -> Router<Arc<Plane>> {
    let page = PAGE
        .replace("{{client_port}}", &options.client_port.to_string())
        .replace("{{websocket_path}}", &escape(&options.websocket_path));
    Router::new()
        .route("/demo", get(move || async move { file(HTML, page) }))
        .route("/demo/demo.js", get(|| async { file(JAVASCRIPT, SCRIPT) }))
        .route("/demo/demo.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .route("/demo/centrifuge.js", get(|| async { file(JAVASCRIPT, SDK_JSON) }))
        .route("/demo/centrifuge.protobuf.js", get(|| async { file(JAVASCRIPT, SDK_PROTOBUF) }))
        .route("/demo/LICENSE", get(|| async { file("text/plain; charset=utf-8", SDK_LICENSE) }))
}

fn file(content_type: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// For an attribute value in double quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}
