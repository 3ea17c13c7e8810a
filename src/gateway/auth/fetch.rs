//! Keeps the keys of `auth.jwks_url` fresh.
//!
//! In: the configured source, and tokens' wish for a key that is not known. Out: key sets for the checker.
//! Runs on the control plane's runtime. Invariants: one fetch at a time, bounded in time, bytes and keys; a source is
//! asked at most once per `refetch_min_ms`; a fetch that fails changes nothing but a counter and a line in the log.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::checker::Checker;
use super::config::JwksSource;
use super::jwks;
use super::keys::KeySet;
use super::metrics::Number;
use crate::{clock, log};

/// Bytes of a key set. Over: the fetch fails, as it does when the head of the answer is longer than about twice this.
const JWKS_BYTES_MAX: usize = 256 * 1024;
/// From a failed fetch to the next, unless refreshing comes sooner anyway or a token wants one.
const JWKS_RETRY_MS: u64 = 10_000;

/// Fetches for ever.
pub(super) async fn keep_fresh(checker: Arc<Checker>) {
    let mut failing = false;
    loop {
        let Some(source) = checker.source() else {
            checker.changed.notified().await;
            continue;
        };
        let asked_ms = clock::now_ms();
        let fetched = tokio::select! {
            fetched = fetch(&source) => fetched,
            // Another source, or an operator's reload: begin anew.
            () = checker.changed.notified() => continue,
        };
        let good = fetched.is_ok();
        match fetched {
            Ok(keys) => {
                if failing {
                    log::info("auth", "auth.jwks_url answers again", &[("keys", &keys.public_keys())]);
                }
                checker.metrics.add(Number::JwksFetched, 1);
                checker.install(&source, keys, asked_ms);
            }
            Err(text) => {
                checker.metrics.add(Number::JwksFailed, 1);
                log::warn("auth", "auth.jwks_url could not be fetched", &[("url", &source.url), ("error", &text)]);
            }
        }
        failing = !good;
        pause(&checker, &source, good, asked_ms).await;
    }
}

/// Until the source is to be asked again. A reload asks at once.
async fn pause(checker: &Checker, source: &JwksSource, good: bool, asked_ms: u64) {
    let since_asked = Duration::from_millis(clock::now_ms().saturating_sub(asked_ms));
    let at_least = Duration::from_millis(source.refetch_min_ms).saturating_sub(since_asked);
    let refresh_ms = if good { source.refresh_ms } else { source.refresh_ms.min(JWKS_RETRY_MS) };
    tokio::select! {
        () = async {
            tokio::time::sleep(at_least).await;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(refresh_ms).saturating_sub(at_least)) => {}
                () = checker.wanted.notified() => {}
            }
        } => {}
        () = checker.changed.notified() => {}
    }
}

/// Fetches a key set once.
///
/// # Errors
/// Says what failed, without the key set's content.
pub(super) async fn fetch(source: &JwksSource) -> Result<KeySet, String> {
    let text = tokio::time::timeout(Duration::from_millis(source.timeout_ms), get(source)).await;
    jwks::parse(&text.map_err(|_| format!("not answered within {} ms", source.timeout_ms))??)
}

async fn get(source: &JwksSource) -> Result<Vec<u8>, String> {
    let uri: Uri = source.url.parse().map_err(|_| "not a URL")?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| format!("cannot connect: {e}"))?;
    if !https {
        return exchange(TokioIo::new(stream), &uri).await;
    }
    let ca_file = source.ca_file.clone();
    // Reads files.
    let config = tokio::task::spawn_blocking(move || tls_config(&ca_file)).await.map_err(|e| e.to_string())??;
    let name = ServerName::try_from(host).map_err(|_| "not a name that a certificate can have")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
    exchange(TokioIo::new(stream), &uri).await
}

fn tls_config(ca_file: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if ca_file.is_empty() {
        // Files with some bad certificates are common; what is missing shows when the server's is not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let named = |e: &dyn std::fmt::Display| format!("{ca_file}: {e}");
        for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|e| named(&e))? {
            roots.add(certificate.map_err(|e| named(&e))?).map_err(|e| named(&e))?;
        }
    }
    if roots.is_empty() {
        return Err("no certificate authority is known; see auth.jwks_ca_file".into());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// One request on a connection of its own.
async fn exchange<S>(stream: S, uri: &Uri) -> Result<Vec<u8>, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let failed = |e: hyper::Error| format!("HTTP: {e}");
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(JWKS_BYTES_MAX)
        .handshake::<_, Empty<Bytes>>(stream)
        .await
        .map_err(failed)?;
    // What goes wrong with it shows in the request.
    let _connection = AbortOnDrop(tokio::spawn(async move { drop(connection.await) }));
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        .header(header::USER_AGENT, concat!("ringway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => {
            return Err(format!("HTTP {status}: redirects are not followed, put the final address into auth.jwks_url"));
        }
        status => return Err(format!("HTTP {status}")),
    }
    let body = Limited::new(answer.into_body(), JWKS_BYTES_MAX).collect().await;
    let body = body.map_err(|e| format!("no key set of at most {JWKS_BYTES_MAX} bytes: {e}"))?;
    Ok(body.to_bytes().to_vec())
}

/// A task that ends with whoever started it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
