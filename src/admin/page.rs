//! The page that shows `/v1/status` to a person: one document, nothing from outside, nothing that a sender
//! wrote ever becomes markup.

use uuid::Uuid;
use warp::{
    Reply,
    http::{HeaderValue, header},
    reply::Response,
};

/// The document. Its style and its script carry a nonce, written here as a word.
const PAGE: &str = include_str!("page.html");
const NONCE: &str = "{{nonce}}";

pub(super) fn page() -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    let mut response = PAGE.replace(NONCE, &nonce).into_response();
    let headers = response.headers_mut();
    let policy = HeaderValue::from_str(&policy).expect("hex digits fit into a header");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
