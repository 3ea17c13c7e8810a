//! Tests of the claims: what each grants, and what makes a token invalid or expired.

use super::*;
use proptest::prelude::*;

const NOW: u64 = 1_700_000_000_500;

fn policy() -> Policy {
    Policy {
        audience: Box::default(),
        issuer: Box::default(),
        user_id_claim: "sub".into(),
        leeway_ms: 0,
        token_channels_max: 4,
    }
}

fn connect_with(payload: &str, policy: &Policy) -> Result<ConnectClaims, TokenError> {
    connect(payload, policy, NOW).map(|passed| passed.claims)
}

fn connected(payload: &str) -> Result<ConnectClaims, TokenError> {
    connect_with(payload, &policy())
}

fn subscribed(payload: &str) -> Result<SubscribeClaims, TokenError> {
    subscribe(payload, &policy(), NOW).map(|passed| passed.claims)
}

#[test]
fn a_full_connection_token_grants_all_it_says() {
    let claims = connected(
        r#"{"sub":"42","exp":1700000060,"iat":1699999999.5,"nbf":1700000000,"jti":"t1","info":{"a":[1,
 "x\ny"]},"meta":"m","channels":["b","a","b"],"unknown":{"x":[]},
 "subs":{"a":{"info":1,"data":{"d":2},"override":{"presence":{"value":true},"join_leave":{"value":false},
 "force_push_join_leave":{"value":true},"force_recovery":{},"force_positioning":{"value":true},"other":1}}}}"#,
    )
    .expect("valid");
    assert_eq!((&*claims.user, &*claims.token_id, claims.expires_in_ms), ("42", "t1", Some(59_500)));
    assert_eq!(&*claims.info, br#"{"a":[1, "x\ny"]}"#);
    assert_eq!(&*claims.meta, br#""m""#);
    let [a, b] = &claims.subscriptions[..] else { panic!("two channels: {:?}", claims.subscriptions) };
    assert_eq!(*b, TokenSubscription { channel: "b".into(), ..TokenSubscription::default() });
    let overrides = Overrides {
        presence: Some(true),
        join_leave: Some(false),
        push_join_leave: Some(true),
        recovery: None,
        positioned: Some(true),
    };
    assert_eq!((&*a.channel, &*a.info, &*a.data, a.overrides), ("a", &b"1"[..], &br#"{"d":2}"#[..], overrides));
}

#[test]
fn an_empty_token_is_an_anonymous_one_without_end() {
    assert_eq!(connected("{}"), Ok(ConnectClaims::default()));
    let null = r#"{"sub":null,"info":null,"exp":null,"channels":null,"subs":null,"b64info":""}"#;
    assert_eq!(connected(null), Ok(ConnectClaims::default()));
}

#[test]
fn expiry_of_token_and_of_connection_are_two_things() {
    let lives = |text: &str| connected(text).map(|claims| claims.expires_in_ms);
    assert_eq!(lives(r#"{"exp":1700000001}"#), Ok(Some(500)));
    assert_eq!(lives(r#"{"exp":1700000000.75}"#), Ok(Some(250)));
    assert_eq!(lives(r#"{"exp":1700000000.5}"#), Err(TokenError::Expired));
    assert_eq!(lives(r#"{"exp":1700000000}"#), Err(TokenError::Expired));
    assert_eq!(lives(r#"{"exp":0}"#), Err(TokenError::Expired));
    assert_eq!(lives(r#"{"exp":-1e300}"#), Err(TokenError::Expired));
    assert!(lives(r#"{"exp":1e300}"#).expect("far away").is_some_and(|ms| ms > 1 << 60));
    assert!(lives(r#"{"exp":18446744073709551615}"#).expect("far away").is_some_and(|ms| ms > 1 << 60));
    assert_eq!(lives(r#"{"exp":1700000001,"expire_at":0}"#), Ok(None));
    assert_eq!(lives(r#"{"exp":1700000001,"expire_at":1700000009}"#), Ok(Some(8_500)));
    assert_eq!(lives(r#"{"expire_at":1700000002}"#), Ok(Some(1_500)));
    assert_eq!(lives(r#"{"expire_at":1700000000}"#), Err(TokenError::Expired));
    assert_eq!(lives(r#"{"exp":1700000000,"expire_at":0}"#), Err(TokenError::Expired));
}

#[test]
fn leeway_forgives_a_clock_that_differs() {
    let policy = Policy { leeway_ms: 2_000, ..policy() };
    let lives = |text: &str| connect_with(text, &policy).map(|claims| claims.expires_in_ms);
    assert_eq!(lives(r#"{"exp":1700000000}"#), Ok(Some(1_500)));
    assert_eq!(lives(r#"{"exp":1699999998}"#), Err(TokenError::Expired));
    assert_eq!(lives(r#"{"nbf":1700000002}"#), Ok(None));
    assert_eq!(lives(r#"{"nbf":1700000003}"#), Err(TokenError::Invalid));
    assert_eq!(connected(r#"{"nbf":1700000001}"#), Err(TokenError::Invalid));
}

#[test]
fn audience_and_issuer_are_asked_for_when_configured() {
    let policy = Policy { audience: "app".into(), issuer: "idp".into(), ..policy() };
    let result = |text: &str| connect_with(text, &policy).map(|_| ());
    for good in [r#"{"aud":"app","iss":"idp"}"#, r#"{"aud":["x","app"],"iss":"idp"}"#] {
        assert_eq!(result(good), Ok(()), "{good}");
    }
    for bad in [
        r#"{"iss":"idp"}"#,
        r#"{"aud":"app"}"#,
        r#"{"aud":"App","iss":"idp"}"#,
        r#"{"aud":["x"],"iss":"idp"}"#,
        r#"{"aud":[],"iss":"idp"}"#,
        r#"{"aud":["app",7],"iss":"idp"}"#,
        r#"{"aud":{"app":1},"iss":"idp"}"#,
        r#"{"aud":"app","iss":"idp2"}"#,
        r#"{"aud":"app","iss":["idp"]}"#,
        // For somebody else, so it is not ours to say that it has expired.
        r#"{"aud":"x","iss":"idp","exp":1}"#,
    ] {
        assert_eq!(result(bad), Err(TokenError::Invalid), "{bad}");
    }
    assert_eq!(connected(r#"{"aud":7,"iss":[]}"#).map(|_| ()), Ok(()), "not asked, not looked at");
}

#[test]
fn the_user_may_stand_in_another_claim() {
    let policy = Policy { user_id_claim: "https://example.com/uid".into(), ..policy() };
    let user = |text: &str| connect_with(text, &policy).map(|claims| claims.user);
    assert_eq!(user(r#"{"sub":1,"https://example.com/uid":"u\u00e9"}"#).as_deref(), Ok("ué"));
    assert_eq!(user(r#"{"sub":"other"}"#).as_deref(), Ok(""));
    assert_eq!(user(r#"{"https://example.com/uid":1}"#), Err(TokenError::Invalid));
}

#[test]
fn base64_stands_for_json_and_wins() {
    let claims = connected(r#"{"info":1,"b64info":"eyJhIjoKMX0="}"#).expect("valid");
    assert_eq!(&*claims.info, br#"{"a":1}"#);
    for bad in ["not base64", "AAEC", "eyJhIjo=", "/w=="] {
        assert_eq!(connected(&format!(r#"{{"b64info":"{bad}"}}"#)), Err(TokenError::Invalid), "{bad}");
    }
}

#[test]
fn a_subscription_token_is_for_one_channel() {
    let claims = subscribed(
        r#"{"sub":"42","channel":"$room","client":"c1","info":{"x":1},"b64data":"W10=","expire_at":1700000003,
            "exp":1700000002,"override":{"force_recovery":{"value":true}}}"#,
    )
    .expect("valid");
    assert_eq!((&*claims.user, &*claims.client, &*claims.subscription.channel), ("42", "c1", "$room"));
    assert_eq!((&*claims.subscription.info, &*claims.subscription.data), (&br#"{"x":1}"#[..], &b"[]"[..]));
    assert_eq!(claims.subscription.expires_in_ms, Some(2_500));
    assert_eq!(claims.subscription.overrides.recovery, Some(true));
    for bad in ["{}", r#"{"channel":""}"#, r#"{"channel":null}"#, r#"{"channel":["a"]}"#] {
        assert_eq!(subscribed(bad), Err(TokenError::Invalid), "{bad}");
    }
    assert_eq!(subscribed(r#"{"channel":"a","exp":1}"#), Err(TokenError::Expired));
    // Neither kind stands in for the other.
    assert_eq!(connected(r#"{"sub":"42","channel":"a"}"#), Err(TokenError::Invalid));
    assert_eq!(connected(r#"{"sub":"42","channel":""}"#), Err(TokenError::Invalid));
}

#[test]
fn channels_are_bounded_and_named() {
    assert_eq!(connected(r#"{"channels":["a","b","c","d","a"]}"#).expect("four").subscriptions.len(), 4);
    assert_eq!(connected(r#"{"channels":["a","b","c","d","e"]}"#), Err(TokenError::Invalid));
    assert_eq!(connected(r#"{"channels":["a","b","c"],"subs":{"d":{},"e":{}}}"#), Err(TokenError::Invalid));
    assert_eq!(connected(r#"{"channels":[""]}"#), Err(TokenError::Invalid));
    assert_eq!(connected(r#"{"subs":{"":{}}}"#), Err(TokenError::Invalid));
}

#[test]
fn wrong_types_make_a_token_invalid() {
    for bad in [
        "",
        "[]",
        r#"["42"]"#,
        "7",
        "{",
        "{}{}",
        r#"{"sub":1}"#,
        r#"{"sub":"a","sub":"b"}"#,
        r#"{"exp":"1700000060"}"#,
        r#"{"exp":true}"#,
        r#"{"iat":"now"}"#,
        r#"{"nbf":{}}"#,
        r#"{"jti":5}"#,
        r#"{"channels":"a"}"#,
        r#"{"channels":{"a":1}}"#,
        r#"{"channels":[1]}"#,
        r#"{"subs":["a"]}"#,
        r#"{"subs":{"a":[1]}}"#,
        r#"{"subs":{"a":{"override":{"presence":true}}}}"#,
        r#"{"subs":{"a":{"override":{"presence":{"value":1}}}}}"#,
        r#"{"subs":{"a":{"override":[]}}}"#,
        r#"{"subs":{"a":{"override":{"presence":[true]}}}}"#,
        r#"{"b64info":1}"#,
        r#"{"info":{"a":}}"#,
    ] {
        assert_eq!(connected(bad), Err(TokenError::Invalid), "{bad}");
    }
    let deep = format!("{{\"info\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    // Whatever it says, it does not end the process.
    let _ = connected(&deep);
}

proptest! {
    #[test]
    fn any_payload_is_taken_or_refused(payload in "\\PC{0,80}", name in "sub|exp|aud|subs|channels|override|info|b64info", value in "\\PC{0,20}|[0-9e.+-]{1,12}|[\\[\\]{}\":,]{0,12}") {
        for text in [payload, format!("{{\"channel\":\"c\",\"{name}\":{value}}}"), format!("{{\"{name}\":{value}}}")] {
            for policy in [policy(), Policy { audience: "a".into(), user_id_claim: name.as_str().into(), ..policy() }] {
                let _ = (connect(&text, &policy, NOW), subscribe(&text, &policy, NOW));
            }
        }
    }
}
