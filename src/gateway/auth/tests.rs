//! Tests of the whole: where a token is checked, what a full queue does, what a revocation reaches, and how keys from
//! a URL come and go. Keys are made here; tokens of other libraries are in `tests/tokens.rs`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::lane_message::LaneMessage;
use ringway_engine::tokens::{TokenChecked, Verdict};
use ringway_sys::thread::spawn_named;

use super::config::{AuthSettings, JwksSource};
use super::keys::{KeySet, PublicKey};
use super::*;
use crate::clock;

/// How long something is waited for that should come at once.
const PATIENCE_MS: u64 = 20_000;

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end_ms = clock::now_ms() + PATIENCE_MS;
    while !holds() {
        assert!(clock::now_ms() < end_ms, "not within {PATIENCE_MS} ms: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A P-256 key that signs.
struct Signer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Signer {
        Signer { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"), kid }
    }

    fn sign(&self, claims: &str) -> String {
        let kid = if self.kid.is_empty() { String::new() } else { format!(r#","kid":"{}""#, self.kid) };
        let signed = signed_part(&format!(r#"{{"alg":"ES256"{kid}}}"#), claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn public(&self) -> PublicKey {
        let kid = Some(self.kid).filter(|kid| !kid.is_empty());
        let key = PublicKey::from_point("P-256", self.pair.public_key().as_ref()).expect("a point");
        key.named(kid, None).expect("fits")
    }

    fn jwk(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        format!(r#"{{"kty":"EC","crv":"P-256","kid":"{}","x":"{x}","y":"{y}"}}"#, self.kid)
    }
}

fn signed_part(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

fn hmac_token(secret: &str, claims: &str) -> String {
    let signed = signed_part(r#"{"alg":"HS256"}"#, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn config(settings: AuthSettings) -> AuthConfig {
    settings.finish(&mut Vec::new()).expect("valid settings")
}

fn config_with(secrets: &[&str], signers: &[&Signer]) -> AuthConfig {
    let mut config = config(AuthSettings::default());
    let mut keys = KeySet::default();
    secrets.iter().for_each(|secret| keys.add_secret(secret.as_bytes()).expect("room"));
    signers.iter().for_each(|signer| keys.add_public(signer.public()).expect("room"));
    config.keys = Arc::new(keys);
    config
}

/// The gateway's tokens as one of two shards asks.
struct Asker {
    auth: Arc<Auth>,
    inboxes: Vec<Arc<Inbox<Batch>>>,
}

fn ask(number: u32) -> TokenAsk {
    TokenAsk { core: CoreId(1), conn: ConnId { slot: number, generation: 7 }, ask: number }
}

impl Asker {
    fn with_inboxes_of(capacity: usize, config: &AuthConfig) -> Asker {
        let inboxes: Vec<_> = (0..3).map(|_| Inbox::new(capacity, 3).expect("an inbox")).collect();
        Asker { auth: Auth::start(config, &inboxes).expect("threads"), inboxes }
    }

    fn new(config: &AuthConfig) -> Asker {
        Asker::with_inboxes_of(16, config)
    }

    fn answer(&self) -> Option<TokenChecked> {
        let batch = self.inboxes[1].pop()?;
        assert_eq!(batch.from, CoreId(2), "the control plane's number");
        batch.messages.into_iter().find_map(|message| match message {
            LaneMessage::TokenChecked(checked) => Some(*checked),
            _ => None,
        })
    }

    fn connect(&self, token: &str) -> Result<ConnectClaims, TokenError> {
        match self.auth.check_connect(token, ask(1)) {
            TokenCheck::Done(result) => result,
            TokenCheck::Later => {
                let mut answer = None;
                eventually("a verdict", || {
                    answer = self.answer();
                    answer.is_some()
                });
                match answer.map(|checked| (checked.ask, checked.verdict)) {
                    Some((answered, Verdict::Connect(result))) if answered == ask(1) => result,
                    other => panic!("another answer: {other:?}"),
                }
            }
        }
    }

    fn user(&self, token: &str) -> Result<Box<str>, TokenError> {
        self.connect(token).map(|claims| claims.user)
    }

    fn number(&self, name: &str, labels: &str) -> u64 {
        self.auth.checker.metrics.value(name, labels)
    }
}

const A: &str = r#"{"sub":"a","jti":"ta"}"#;

#[test]
fn shared_secrets_are_verified_here_and_now() {
    let asker = Asker::new(&config_with(&["old", "new"], &[]));
    for secret in ["old", "new"] {
        let TokenCheck::Done(result) = asker.auth.check_connect(&hmac_token(secret, A), ask(1)) else {
            panic!("must be said at once");
        };
        assert_eq!(result.map(|claims| claims.user).as_deref(), Ok("a"));
    }
    assert_eq!(asker.user(&hmac_token("other", A)), Err(TokenError::Invalid));
    // Nothing to wait for either: no public key is configured, so none can be good.
    assert!(matches!(
        asker.auth.check_connect(&Signer::new("k").sign(A), ask(1)),
        TokenCheck::Done(Err(TokenError::Invalid))
    ));
    let token = hmac_token("new", r#"{"sub":"a","channel":"c"}"#);
    let TokenCheck::Done(Ok(claims)) = asker.auth.check_subscribe(&token, ask(1)) else { panic!("is good") };
    assert_eq!((&*claims.user, &*claims.subscription.channel), ("a", "c"));
    let checked = |kind: &str, result: &str| {
        asker.number("ringway_tokens_checked_total", &format!("kind=\"{kind}\",result=\"{result}\""))
    };
    assert_eq!((checked("connect", "ok"), checked("connect", "invalid"), checked("subscribe", "ok")), (2, 2, 1));
}

#[test]
fn the_secret_of_dev_is_dev_and_no_other_start_has_one() {
    let dev = Asker::new(&config(crate::config::Settings::dev().auth));
    assert_eq!(dev.user(&hmac_token("dev", A)).as_deref(), Ok("a"));
    assert_eq!(dev.user(&hmac_token("", A)), Err(TokenError::Invalid));
    let closed = Asker::new(&config(AuthSettings::default()));
    for secret in ["dev", ""] {
        assert_eq!(closed.user(&hmac_token(secret, A)), Err(TokenError::Invalid));
    }
}

#[test]
fn public_keys_are_verified_elsewhere_and_answered_over_the_lane() {
    let (named, nameless, stranger) = (Signer::new("k1"), Signer::new(""), Signer::new("k1"));
    let asker = Asker::new(&config_with(&[], &[&named, &nameless]));
    assert!(matches!(asker.auth.check_connect(&named.sign(A), ask(9)), TokenCheck::Later));
    let mut answer = None;
    eventually("a verdict", || {
        answer = asker.answer();
        answer.is_some()
    });
    let TokenChecked { ask: answered, verdict: Verdict::Connect(Ok(claims)) } = answer.expect("came") else {
        panic!("is good");
    };
    assert_eq!((answered, &*claims.user), (ask(9), "a"));
    assert_eq!(asker.user(&nameless.sign(A)).as_deref(), Ok("a"));
    assert_eq!(asker.user(&stranger.sign(A)), Err(TokenError::Invalid));
    let other_name = Signer { pair: named.pair, kid: "k2" };
    assert_eq!(asker.user(&other_name.sign(A)), Err(TokenError::Invalid), "its key has another name");
    assert_eq!(asker.user(&nameless.sign(r#"{"sub":"a","exp":1}"#)), Err(TokenError::Expired));
    assert!(matches!(asker.auth.check_subscribe(&nameless.sign(r#"{"channel":"c"}"#), ask(2)), TokenCheck::Later));
    eventually("a verdict", || {
        asker.answer().is_some_and(|checked| matches!(checked.verdict, Verdict::Subscribe(Ok(_))))
    });
}

#[test]
fn a_full_queue_is_an_answer_and_no_verdict_is_lost() {
    let signer = Signer::new("k");
    let mut config = config_with(&[], &[&signer]);
    (config.pool_threads, config.pool_queue_max) = (1, 2);
    // The shard takes nothing from its inbox of one: sooner or later everything stands.
    let asker = Asker::with_inboxes_of(1, &config);
    let token = signer.sign(A);
    let (mut later, mut busy) = (0, 0);
    let mut quiet_since_ms = clock::now_ms();
    while clock::now_ms() - quiet_since_ms < 200 {
        match asker.auth.check_connect(&token, ask(later)) {
            TokenCheck::Later => {
                later += 1;
                quiet_since_ms = clock::now_ms();
            }
            TokenCheck::Done(Err(TokenError::Busy)) => {
                busy += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            TokenCheck::Done(other) => panic!("{other:?}"),
        }
    }
    // One in the inbox, those held back, one in hand, and the queue.
    assert!((4..=1 + 256 + 1 + 2).contains(&later), "{later} tokens were taken");
    assert_eq!(asker.number("ringway_token_pool_full_total", ""), busy);
    assert!(busy > 0 && asker.number("ringway_token_answers_delayed_total", "") > 0);
    let mut seen = vec![false; later as usize];
    eventually("every verdict", || {
        while let Some(checked) = asker.answer() {
            assert!(matches!(checked.verdict, Verdict::Connect(Ok(_))));
            assert!(!std::mem::replace(&mut seen[checked.ask.ask as usize], true), "answered twice");
        }
        seen.iter().all(|seen| *seen)
    });
    assert_eq!(asker.user(&token).as_deref(), Ok("a"), "and it goes on");
}

#[test]
fn a_revoked_token_is_invalid_also_when_its_verdict_already_waits() {
    let signer = Signer::new("k");
    let mut config = config_with(&["secret"], &[&signer]);
    config.pool_threads = 1;
    let asker = Asker::with_inboxes_of(1, &config);
    let (hs, es) = (hmac_token("secret", A), signer.sign(A));
    // The first verdict fills the inbox, the second, found good, is held back.
    for number in 0..2 {
        assert!(matches!(asker.auth.check_connect(&es, ask(number)), TokenCheck::Later));
    }
    eventually("the second is held back", || asker.number("ringway_token_answers_delayed_total", "") == 1);
    asker.auth.revoke_token("ta", 0);
    let mut verdicts = Vec::new();
    eventually("both", || {
        verdicts.extend(asker.answer());
        verdicts.len() == 2
    });
    assert!(matches!(verdicts[0].verdict, Verdict::Connect(Ok(_))), "was handed over before");
    assert!(matches!(verdicts[1].verdict, Verdict::Connect(Err(TokenError::Invalid))), "must not come behind");

    assert_eq!((asker.user(&hs), asker.user(&es)), (Err(TokenError::Invalid), Err(TokenError::Invalid)));
    let subscription = hmac_token("secret", r#"{"sub":"a","jti":"ta","channel":"c"}"#);
    assert!(matches!(asker.auth.check_subscribe(&subscription, ask(1)), TokenCheck::Done(Err(TokenError::Invalid))));
    assert_eq!(asker.user(&hmac_token("secret", r#"{"sub":"a","jti":"tb"}"#)).as_deref(), Ok("a"));
    asker.auth.revoke_token("", 0);
    assert_eq!(asker.user(&hmac_token("secret", r#"{"sub":"a"}"#)).as_deref(), Ok("a"), "no id is no id");
    asker.auth.revoke_token("tb", 1);
    assert_eq!(asker.user(&hmac_token("secret", r#"{"sub":"a","jti":"tb"}"#)).as_deref(), Ok("a"), "expired long ago");
    let mut text = String::new();
    asker.auth.render_metrics(&mut text);
    assert!(text.contains("ringway_revoked_tokens 1\n"), "{text}");
    assert_eq!(asker.number("ringway_tokens_checked_total", "kind=\"connect\",result=\"revoked\""), 2);
    assert_eq!(asker.number("ringway_tokens_checked_total", "kind=\"subscribe\",result=\"revoked\""), 1);
}

#[test]
fn another_configuration_is_taken_as_a_whole() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let asker = Asker::new(&config_with(&["old"], &[&old]));
    asker.auth.revoke_token("gone", 0);
    let mut config = config_with(&["new"], &[&new]);
    config.policy.issuer = "idp".into();
    config.token_bytes_max = 400;
    asker.auth.replace(&config);
    let claims = r#"{"sub":"a","iss":"idp"}"#;
    assert_eq!(asker.user(&hmac_token("new", claims)).as_deref(), Ok("a"));
    assert_eq!(asker.user(&new.sign(claims)).as_deref(), Ok("a"));
    assert_eq!(asker.user(&hmac_token("old", claims)), Err(TokenError::Invalid));
    assert_eq!(asker.user(&old.sign(claims)), Err(TokenError::Invalid));
    assert_eq!(asker.user(&hmac_token("new", A)), Err(TokenError::Invalid), "not of the issuer");
    let revoked = hmac_token("new", r#"{"sub":"a","iss":"idp","jti":"gone"}"#);
    assert_eq!(asker.user(&revoked), Err(TokenError::Invalid), "revocations outlive a reload");
    let long = format!(r#"{{"sub":"a","iss":"idp","info":"{}"}}"#, "x".repeat(400));
    assert_eq!(asker.user(&hmac_token("new", &long)), Err(TokenError::Invalid), "over token_bytes_max");
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused(token in "\\PC{0,100}", at in 0usize..300, by in any::<char>()) {
        thread_local! {
            static ASKER: Asker = Asker::new(&config_with(&["secret"], &[]));
        }
        ASKER.with(|asker| {
            let good = hmac_token("secret", A);
            let changed: String = good.chars().enumerate().map(|(i, c)| if i == at % good.len() { by } else { c }).collect();
            for text in [&token, &changed, &format!("{}.{token}.{token}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#))] {
                let granted = asker.connect(text).is_ok();
                assert_eq!(granted, *text == good, "{text}");
                let _ = asker.auth.check_subscribe(text, ask(1));
            }
        });
    }
}

/// What the test server does with a request.
#[derive(Clone)]
enum Behaviour {
    /// 200 with this body.
    Body(String),
    /// Exactly these bytes.
    Bytes(String),
    /// 200 with a body that never ends.
    Endless,
    /// Takes the request and says nothing until it is told to go.
    Silent,
}

/// A key set server on loopback, on a thread of its own.
struct KeyServer {
    address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl KeyServer {
    fn start(behaviour: Behaviour) -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let server = KeyServer {
            address,
            behaviour: Arc::new(Mutex::new(behaviour)),
            requests: Arc::default(),
            stop: Arc::default(),
        };
        let (behaviour, requests, stop) =
            (Arc::clone(&server.behaviour), Arc::clone(&server.requests), Arc::clone(&server.stop));
        spawn_named("key-server", move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                requests.fetch_add(1, Ordering::AcqRel);
                let now = behaviour.lock().expect("not poisoned").clone();
                serve(stream, &now, &stop);
            }
        })
        .expect("a thread");
        server
    }

    fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock().expect("not poisoned") = behaviour;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    fn source(&self) -> JwksSource {
        JwksSource {
            url: format!("http://{}/keys", self.address),
            ca_file: String::new(),
            refresh_ms: 3_600_000,
            timeout_ms: 10_000,
            refetch_min_ms: 0,
        }
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Ends the accept.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, behaviour: &Behaviour, stop: &AtomicBool) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
        // The first byte of a TLS handshake, which is not spoken here.
        if head == [22] {
            return;
        }
    }
    match behaviour {
        Behaviour::Body(body) => {
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes());
        }
        Behaviour::Bytes(bytes) => {
            let _ = stream.write_all(bytes.as_bytes());
        }
        Behaviour::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            while stream.write_all(&[b' '; 4096]).is_ok() && !stop.load(Ordering::Acquire) {}
        }
        Behaviour::Silent => {
            // The client goes first.
            let _ = stream.read(&mut byte);
        }
    }
}

fn set_of(signers: &[&Signer]) -> Behaviour {
    let keys: Vec<String> = signers.iter().map(|signer| signer.jwk()).collect();
    Behaviour::Body(format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}

/// Runs the task as the control plane does, until it is dropped.
struct Fetching(Option<tokio::sync::oneshot::Sender<()>>);

impl Fetching {
    fn start(auth: &Auth) -> Fetching {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let keep_fresh = auth.keep_keys_fresh();
        spawn_named("fetching", move || {
            runtime().block_on(async {
                tokio::select! {
                    () = keep_fresh => {}
                    _ = stopped => {}
                }
            });
        })
        .expect("a thread");
        Fetching(Some(stop))
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn fetches(asker: &Asker, result: &str) -> u64 {
    asker.number("ringway_jwks_fetches_total", &format!("result=\"{result}\""))
}

#[test]
fn keys_from_a_url_come_and_are_rotated() {
    let (first, second) = (Signer::new("k1"), Signer::new("k2"));
    let server = KeyServer::start(set_of(&[&first]));
    let mut config = config_with(&[], &[]);
    config.jwks = Some(server.source());
    let asker = Asker::new(&config);
    assert_eq!(asker.user(&first.sign(A)), Err(TokenError::Busy), "not fetched yet: come again");
    let _fetching = Fetching::start(&asker.auth);
    eventually("the first key", || asker.user(&first.sign(A)).as_deref() == Ok("a"));
    assert_eq!(asker.user(&Signer::new("k1").sign(A)), Err(TokenError::Invalid), "another key of a known name");

    // The publisher adds a key, and the next token that names it makes us look, long before the hour is over.
    server.becomes(set_of(&[&second, &first]));
    eventually("the second key", || asker.user(&second.sign(A)).as_deref() == Ok("a"));
    assert_eq!(asker.user(&first.sign(A)).as_deref(), Ok("a"));
    assert_eq!(asker.number("ringway_jwks_keys", ""), 2);
    // It takes the old one back.
    server.becomes(set_of(&[&second]));
    asker.auth.replace(&config);
    eventually("the first key is gone", || asker.number("ringway_jwks_keys", "") == 1);
    assert_ne!(asker.user(&first.sign(A)).as_deref(), Ok("a"));
    assert_eq!(asker.user(&second.sign(A)).as_deref(), Ok("a"));
}

#[test]
fn unknown_keys_do_not_make_us_ask_more_often() {
    let (known, unknown) = (Signer::new("k1"), Signer::new("k2"));
    let server = KeyServer::start(set_of(&[&known]));
    let mut config = config_with(&[], &[]);
    config.jwks = Some(JwksSource { refetch_min_ms: 3_600_000, ..server.source() });
    let asker = Asker::new(&config);
    let _fetching = Fetching::start(&asker.auth);
    eventually("the key", || asker.user(&known.sign(A)).as_deref() == Ok("a"));
    for _ in 0..20 {
        assert_eq!(asker.user(&unknown.sign(A)), Err(TokenError::Invalid), "the set was asked for just now");
    }
    assert_eq!((server.requests(), fetches(&asker, "ok")), (1, 1));
}

#[test]
fn old_keys_stay_while_fetches_fail() {
    let (first, second) = (Signer::new("k1"), Signer::new("k2"));
    let server = KeyServer::start(set_of(&[&first]));
    let mut config = config_with(&[], &[]);
    config.jwks = Some(JwksSource { refresh_ms: 1, timeout_ms: 300, ..server.source() });
    let asker = Asker::new(&config);
    let _fetching = Fetching::start(&asker.auth);
    eventually("the key", || asker.user(&first.sign(A)).as_deref() == Ok("a"));
    let many = vec![second.jwk(); 65].join(",");
    for (what, behaviour) in [
        ("garbage", Behaviour::Body("no JSON".into())),
        ("an empty set", Behaviour::Body(r#"{"keys":[]}"#.into())),
        ("too many keys", Behaviour::Body(format!(r#"{{"keys":[{many}]}}"#))),
        ("too long", Behaviour::Body(" ".repeat(300 * 1024))),
        ("endless", Behaviour::Endless),
        ("silent", Behaviour::Silent),
        ("not HTTP", Behaviour::Bytes("220 hello\r\n\r\n".into())),
        ("an error", Behaviour::Bytes("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into())),
        ("torn", Behaviour::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"keys\":[".into())),
    ] {
        server.becomes(behaviour);
        let before = fetches(&asker, "failed");
        eventually(what, || fetches(&asker, "failed") >= before + 2);
        assert_eq!(asker.user(&first.sign(A)).as_deref(), Ok("a"), "{what}");
        assert_eq!(asker.user(&second.sign(A)), Err(TokenError::Busy), "{what}: a newer set may have it");
    }
    server.becomes(set_of(&[&second]));
    eventually("the next good set", || asker.user(&second.sign(A)).as_deref() == Ok("a"));
}

#[test]
fn a_fetch_says_what_is_wrong() {
    let signer = Signer::new("k1");
    let server = KeyServer::start(set_of(&[&signer]));
    let fetch = |source: &JwksSource| runtime().block_on(fetch::fetch(source));
    assert_eq!(fetch(&server.source()).map(|keys| keys.public_keys()), Ok(1));
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{{\"keys\":[{}]}}\r\n0\r\n\r\n",
        signer.jwk().len() + 11,
        signer.jwk()
    );
    server.becomes(Behaviour::Bytes(chunked));
    assert_eq!(fetch(&server.source()).map(|keys| keys.public_keys()), Ok(1));
    let moved = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let announced = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    for (behaviour, words) in [
        (Behaviour::Bytes(moved.into()), "redirects are not followed"),
        (Behaviour::Bytes(announced.into()), "at most 262144 bytes"),
        (Behaviour::Endless, "at most 262144 bytes"),
        (Behaviour::Bytes(String::new()), "HTTP: "),
        (Behaviour::Bytes(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1024 * 1024))), "HTTP: "),
        (Behaviour::Body("{}".into()), "not a JSON Web Key Set"),
        (Behaviour::Body(signer.jwk()), "not a JSON Web Key Set"),
    ] {
        server.becomes(behaviour);
        let error = fetch(&server.source()).expect_err(words);
        assert!(error.contains(words), "{words}: {error}");
    }
    server.becomes(Behaviour::Silent);
    let error = fetch(&JwksSource { timeout_ms: 100, ..server.source() }).expect_err("silent");
    assert!(error.contains("not answered within 100 ms"), "{error}");
    let nobody = JwksSource { url: "http://127.0.0.1:1/".into(), ..server.source() };
    assert!(fetch(&nobody).expect_err("nobody listens").contains("cannot connect"));
    let error = fetch(&JwksSource { url: server.source().url.replace("http:", "https:"), ..server.source() });
    assert!(error.expect_err("no TLS there").contains("TLS: "));
}

#[test]
fn a_fetch_for_another_source_changes_nothing() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (before, after) = (KeyServer::start(Behaviour::Silent), KeyServer::start(set_of(&[&new])));
    let mut config = config_with(&[], &[]);
    config.jwks = Some(before.source());
    let asker = Asker::new(&config);
    let source = asker.auth.checker.source().expect("configured");
    let _fetching = Fetching::start(&asker.auth);
    eventually("the old one is asked", || before.requests() == 1);
    config.jwks = Some(after.source());
    // Does not wait for the silent one.
    asker.auth.replace(&config);
    eventually("the new key", || asker.user(&new.sign(A)).as_deref() == Ok("a"));
    let mut keys = KeySet::default();
    keys.add_public(old.public()).expect("room");
    asker.auth.checker.install(&source, keys, clock::now_ms());
    assert_ne!(asker.user(&old.sign(A)).as_deref(), Ok("a"));
    assert_eq!(asker.user(&new.sign(A)).as_deref(), Ok("a"));
    config.jwks = None;
    asker.auth.replace(&config);
    assert_eq!(asker.user(&new.sign(A)), Err(TokenError::Invalid), "no source, no keys");
}
