//! Tokens that published libraries signed, PyJWT and jose, against the gateway's verification: every algorithm, with
//! keys from secrets, PEM files, a key set file and a key set over HTTPS, and everything that must be refused.
//!
//! In: `tests/sdk/sign_tokens.*`, which make keys and tokens, and `serve_jwks.py`; `make sdk` installs what they need.
//! Out: pass or fail, naming library, algorithm and case.
#![allow(clippy::disallowed_methods, reason = "tests measure real time and start real threads")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringway::auth::Auth;
use ringway::cli::RunArgs;
use ringway::config::Config;
use ringway_engine::ids::{ConnId, CoreId};
use ringway_engine::lane_message::{Batch, LaneMessage};
use ringway_engine::tokens::{
    ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenChecked, TokenError, Tokens, Verdict,
};
use ringway_sys::Inbox;
use ringway_tests::{PATIENCE, Server, server::root};
use serde_json::Value;

const ALGORITHMS: [&str; 10] =
    ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"];
const EXPECTED: [&str; 2] = ["auth.audience=ringway", "auth.issuer=tests"];

/// What a library made. Making RSA keys takes seconds, so each script runs once for all tests.
struct Signed {
    library: &'static str,
    folder: PathBuf,
    tokens: Vec<Value>,
}

impl Signed {
    fn by(script: &'static str) -> &'static Signed {
        static PYJWT: OnceLock<Signed> = OnceLock::new();
        static JOSE: OnceLock<Signed> = OnceLock::new();
        if script.ends_with(".py") { &PYJWT } else { &JOSE }.get_or_init(|| Signed::run(script))
    }

    fn run(script: &'static str) -> Signed {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ringway-{script}"));
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        let output = sdk(script).arg(&folder).output().expect("the script starts");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(folder.join("tokens.json")).expect("the script wrote tokens");
        let tokens: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let algorithms: Vec<&str> = tokens.iter().filter_map(|entry| entry["alg"].as_str()).collect();
        assert_eq!(algorithms, ALGORITHMS, "{script}");
        Signed { library: script, folder, tokens }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn entry(&self, alg: &str) -> &Value {
        self.tokens.iter().find(|entry| entry["alg"] == alg).expect("every algorithm is there")
    }

    fn token(&self, alg: &str, case: &str) -> &str {
        self.entry(alg)[case].as_str().unwrap_or_else(|| panic!("{} has no {case}", self.library))
    }

    /// PEM files of all public keys and the secret, as settings.
    fn keys(&self) -> [String; 2] {
        let files: Vec<String> = ALGORITHMS[3..].iter().map(|alg| self.path(&format!("{alg}.pem"))).collect();
        [
            format!("auth.public_keys_files={}", files.join(",")),
            format!("auth.hmac_secrets_file={}", self.path("hmac.txt")),
        ]
    }
}

fn sdk(script: &str) -> Command {
    let folder = root().join("tests").join("sdk");
    let needed = if script.ends_with(".py") { ".venv/bin/python" } else { "node_modules/jose" };
    assert!(folder.join(needed).exists(), "tests/sdk/{needed} is missing: run `make sdk`");
    let mut command = if script.ends_with(".py") { Command::new(folder.join(needed)) } else { Command::new("node") };
    command.arg(script).current_dir(&folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The gateway's tokens, asked as the only shard would.
struct Asker {
    auth: Arc<Auth>,
    inboxes: Vec<Arc<Inbox<Batch>>>,
    asked: u32,
}

impl Asker {
    fn new(settings: &[String]) -> Asker {
        let set = settings.iter().cloned().chain(EXPECTED.map(String::from)).collect();
        let args = RunArgs { set, ..RunArgs::default() };
        let config = Config::load_from(&args, std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
        let inboxes: Vec<_> = (0..2).map(|_| Inbox::new(16, 2).expect("an inbox")).collect();
        let auth = Auth::start(&config.auth, &inboxes).expect("threads");
        Asker { auth, inboxes, asked: 0 }
    }

    fn next(&mut self) -> TokenAsk {
        self.asked += 1;
        TokenAsk { core: CoreId(0), conn: ConnId { slot: 3, generation: 5 }, ask: self.asked }
    }

    fn later(&self, ask: TokenAsk) -> Verdict {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(batch) = self.inboxes[0].pop() {
                assert_eq!(batch.from, CoreId(1), "the control plane's number");
                let mut messages = batch.messages.into_iter();
                let Some(LaneMessage::TokenChecked(checked)) = messages.next() else { panic!("another message") };
                let TokenChecked { ask: answered, verdict } = *checked;
                assert_eq!((answered, messages.count()), (ask, 0));
                return verdict;
            }
            assert!(Instant::now() < end, "no verdict within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn connect(&mut self, token: &str) -> Result<ConnectClaims, TokenError> {
        let ask = self.next();
        match self.auth.check_connect(token, ask) {
            TokenCheck::Done(result) => result,
            TokenCheck::Later => match self.later(ask) {
                Verdict::Connect(result) => result,
                Verdict::Subscribe(_) => panic!("a verdict of the other kind"),
            },
        }
    }

    fn subscribe(&mut self, token: &str) -> Result<SubscribeClaims, TokenError> {
        let ask = self.next();
        match self.auth.check_subscribe(token, ask) {
            TokenCheck::Done(result) => result,
            TokenCheck::Later => match self.later(ask) {
                Verdict::Subscribe(result) => result,
                Verdict::Connect(_) => panic!("a verdict of the other kind"),
            },
        }
    }

    fn refuses(&mut self, what: &str, token: &str, with: TokenError) {
        assert_eq!(self.connect(token).map(|_| ()), Err(with), "{what}: {token}");
    }
}

fn assert_granted(what: &str, result: Result<ConnectClaims, TokenError>) {
    let claims = result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!((&*claims.user, &*claims.token_id), ("user-1", "token-1"), "{what}");
    let info: Value = serde_json::from_slice(&claims.info).expect("JSON");
    assert_eq!(info["name"], "Zoë", "{what}");
    let channels: Vec<&str> = claims.subscriptions.iter().map(|one| &*one.channel).collect();
    assert_eq!(channels, ["$room", "news"], "{what}");
    assert!(claims.expires_in_ms.is_some_and(|ms| (3_000_000..=3_600_000).contains(&ms)), "{what}");
}

/// Everything that has to hold for one algorithm, however the key came in.
fn check(asker: &mut Asker, signed: &Signed, alg: &str) {
    let what = |case: &str| format!("{} {alg} {case}", signed.library);
    let token = |case: &str| signed.token(alg, case);
    for case in ["good", "by_kid"] {
        assert_granted(&what(case), asker.connect(token(case)));
    }
    let claims = asker.subscribe(token("subscribe")).unwrap_or_else(|error| panic!("{}: {error:?}", what("subscribe")));
    assert_eq!((&*claims.user, &*claims.subscription.channel), ("user-1", "$room"));
    asker.refuses(&what("subscription token for a connection"), token("subscribe"), TokenError::Invalid);
    assert_eq!(asker.subscribe(token("good")).map(|_| ()), Err(TokenError::Invalid), "{}", what("no channel"));

    asker.refuses(&what("expired"), token("expired"), TokenError::Expired);
    for case in ["not_yet", "other_audience", "other_issuer", "wrong_key", "wrong_key_by_kid"] {
        asker.refuses(&what(case), token(case), TokenError::Invalid);
    }

    let good = token("good");
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    for bit in [0, 7, bytes.len() * 4 + 1, bytes.len() * 8 - 1] {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let forged = format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(flipped));
        asker.refuses(&what(&format!("bit {bit} of the signature")), &forged, TokenError::Invalid);
    }
    for length in [0, 1, bytes.len() - 1] {
        let forged = format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(&bytes[..length]));
        asker.refuses(&what("a short signature"), &forged, TokenError::Invalid);
    }
    let claims = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    let other = String::from_utf8(claims).expect("UTF-8").replace("user-1", "user-2");
    let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(other));
    asker.refuses(&what("other claims"), &forged, TokenError::Invalid);
    for other in ALGORITHMS.into_iter().chain(["none", "None", "PS256", "ES256K", ""]).filter(|other| *other != alg) {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{other}","typ":"JWT"}}"#));
        for signature in [signature, ""] {
            asker.refuses(
                &what(&format!("as {other}")),
                &format!("{header}.{payload}.{signature}"),
                TokenError::Invalid,
            );
        }
    }
    if let Some(confused) = signed.entry(alg)["confused"].as_str() {
        asker.refuses(&what("public key as a shared secret"), confused, TokenError::Invalid);
    }
}

fn every_algorithm_with_secrets_and_pem_files(script: &'static str) {
    let signed = Signed::by(script);
    let mut asker = Asker::new(&signed.keys());
    for alg in ALGORITHMS {
        check(&mut asker, signed, alg);
    }
    // Not one of these keys signs for the other library's tokens.
    let other = Signed::by(if script.ends_with(".py") { "sign_tokens.mjs" } else { "sign_tokens.py" });
    for alg in ALGORITHMS {
        asker.refuses("another library's key", other.token(alg, "good"), TokenError::Invalid);
    }
    // Old and new keys stand side by side while they are rotated.
    let [ours, theirs] = [signed.keys(), other.keys()];
    let both = format!("{},{}", ours[0], theirs[0].split_once('=').expect("a setting").1);
    let mut asker = Asker::new(&[both]);
    for alg in &ALGORITHMS[3..] {
        assert_granted("the one key", asker.connect(signed.token(alg, "good")));
        assert_granted("the other key", asker.connect(other.token(alg, "good")));
        asker.refuses("nobody's key", signed.token(alg, "wrong_key"), TokenError::Invalid);
    }
    asker.refuses("no secret is set", signed.token("HS256", "good"), TokenError::Invalid);
}

#[test]
fn pyjwt_with_secrets_and_pem_files() {
    every_algorithm_with_secrets_and_pem_files("sign_tokens.py");
}

#[test]
fn jose_with_secrets_and_pem_files() {
    every_algorithm_with_secrets_and_pem_files("sign_tokens.mjs");
}

#[test]
fn key_sets_of_both_libraries() {
    for script in ["sign_tokens.py", "sign_tokens.mjs"] {
        let signed = Signed::by(script);
        let mut asker = Asker::new(&[format!("auth.jwks_file={}", signed.path("jwks.json"))]);
        for alg in &ALGORITHMS[3..] {
            check(&mut asker, signed, alg);
        }
        // A secret in a set that is made to be public is no secret.
        asker.refuses("oct", signed.token("HS256", "good"), TokenError::Invalid);
    }
}

/// A script that serves until it is dropped.
struct Served(Child, String);

impl Served {
    fn start(file: &str, ca_file: &str) -> Served {
        let mut command = sdk("serve_jwks.py");
        let mut child =
            command.args([file, ca_file]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next().and_then(Result::ok).unwrap_or_default();
        let port = line.strip_prefix("READY ").unwrap_or_else(|| panic!("serve_jwks.py said {line:?}")).to_owned();
        Served(child, port)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs what the control plane runs, on a thread of its own, until it is dropped.
struct Fetching(Option<tokio::sync::oneshot::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Fetching {
    fn start(auth: &Auth) -> Fetching {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let keep_fresh = auth.keep_keys_fresh();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = keep_fresh => {}
                    _ = stopped => {}
                }
            });
        });
        Fetching(Some(stop), Some(thread))
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        drop(self.0.take());
        let ended = self.1.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the fetching thread panicked");
    }
}

#[test]
fn a_key_set_over_https_is_taken_from_a_trusted_server_only() {
    let signed = Signed::by("sign_tokens.mjs");
    let ca_file = signed.path("ca.pem");
    let served = Served::start(&signed.path("jwks.json"), &ca_file);
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("auth.jwks_url=https://{host}:{}/keys?of=tests", served.1);
        let mut asker = Asker::new(&[url, format!("auth.jwks_ca_file={ca_file}")]);
        asker.refuses("not fetched yet", signed.token("ES256", "by_kid"), TokenError::Busy);
        let _fetching = Fetching::start(&asker.auth);
        let end = Instant::now() + PATIENCE;
        let mut result = Err(TokenError::Busy);
        while result == Err(TokenError::Busy) && Instant::now() < end {
            result = asker.connect(signed.token("ES256", "by_kid"));
        }
        assert_granted(host, result);
        for alg in &ALGORITHMS[3..] {
            check(&mut asker, signed, alg);
        }
    }
    // The system's authorities do not vouch for it: no key of it may be taken.
    let mut asker = Asker::new(&[format!("auth.jwks_url=https://localhost:{}/keys?of=tests", served.1)]);
    let _fetching = Fetching::start(&asker.auth);
    let failed = || {
        let mut text = String::new();
        asker.auth.render_metrics(&mut text);
        text.contains("ringway_jwks_fetches_total{result=\"failed\"} 1\n")
    };
    ringway_tests::eventually("the fetch from an unknown authority fails", failed);
    asker.refuses("from an unknown authority", signed.token("ES256", "by_kid"), TokenError::Busy);
}

#[test]
fn a_running_gateway_fetches_its_keys_and_says_so() {
    let signed = Signed::by("sign_tokens.mjs");
    let ca_file = signed.path("ca-of-the-process.pem");
    let served = Served::start(&signed.path("jwks.json"), &ca_file);
    let url = format!("auth.jwks_url=https://localhost:{}/keys?of=tests", served.1);
    let server = Server::start(&["--set", &url, "--set", &format!("auth.jwks_ca_file={ca_file}")]);
    ringway_tests::eventually_is("keys", 7, || server.metrics().sum("ringway_jwks_keys", &[]));
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid)).expect("it runs");
    let names: Vec<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    assert!(names.iter().any(|name| name == "auth-0") && names.iter().any(|name| name == "auth-1"), "{names:?}");
}

#[test]
fn key_files_that_are_wrong_are_refused_at_start() {
    let signed = Signed::by("sign_tokens.mjs");
    let write = |name: &str, text: &str| {
        std::fs::write(Path::new(&signed.path(name)), text).expect("writable");
        signed.path(name)
    };
    let public = std::fs::read_to_string(signed.path("ES256.pem")).expect("a PEM file");
    let secret = public.replace("PUBLIC", "PRIVATE");
    let set = std::fs::read_to_string(signed.path("jwks.json")).expect("a key set");
    let many = format!("{{\"keys\":[{}]}}", vec![set[9..set.len() - 2].to_owned(); 10].join(","));
    for (key, file, words) in [
        ("public_keys_files", write("private.pem", &secret), "\"PRIVATE KEY\" instead of a public key"),
        ("public_keys_files", write("torn.pem", &public[..60]), "no END line"),
        ("public_keys_files", write("bits.pem", &public.replacen('M', "!", 1)), "not base64"),
        ("public_keys_files", write("empty.pem", "\n"), "no public key"),
        ("public_keys_files", signed.path("nowhere.pem"), "No such file"),
        ("public_keys_files", vec![signed.path("ES256.pem"); 65].join(","), "at most 64"),
        ("jwks_file", write("set.json", "{\"keys\":[]}"), "no usable key among 0"),
        ("jwks_file", write("array.json", "[]"), "not a JSON Web Key Set"),
        ("jwks_file", write("many.json", &many), "at most 64"),
        ("jwks_file", write("use.json", &set.replace("\"sig\"", "\"enc\"")), "key 0: not for signatures"),
        ("jwks_file", write("alg.json", &set.replace("\"alg\":\"", "\"alg\":\"X")), "an unsupported alg"),
        ("hmac_secrets_file", write("none.txt", "\n\n"), "holds no secret"),
    ] {
        let args = RunArgs { set: vec![format!("auth.{key}={file}")], ..RunArgs::default() };
        let error = Config::load_from(&args, std::iter::empty()).expect_err(words).to_string();
        assert!(error.contains(words) && error.contains(&format!("auth.{key}")), "{words}: {error}");
    }
}
