//! The configuration rows of `auth.*`.
//!
//! In: nothing. Out: [`AUTH_ROWS`], a part of the table in `config_table.rs` and of the generated pages.
//! Invariants: defaults stand in `AuthSettings::default()` alone; what a reload can change says so.

use crate::config::Settings;
use crate::config_table::{Field, Row};

macro_rules! text {
    ($allowed:literal, $f:ident) => {
        Field::Text { allowed: $allowed, secret: false, get: |s| &s.auth.$f, set: |s, v| s.auth.$f = v }
    };
}
macro_rules! list {
    ($allowed:literal, secret: $secret:literal, $f:ident) => {
        Field::List { allowed: $allowed, secret: $secret, get: |s| &s.auth.$f, set: |s, v| s.auth.$f = v }
    };
}
macro_rules! integer {
    ($unit:literal $min:literal ..= $max:literal, $f:ident) => {
        Field::Integer {
            unit: $unit,
            min: $min,
            max: $max,
            get: |s| s.auth.$f.into(),
            // Within the bounds, which fit the field.
            set: |s, v| s.auth.$f = v as _,
        }
    };
}
macro_rules! rows {
    ($( $key:literal, restart: $restart:literal => $field:expr; $what:literal; $effect:literal; $when:literal; )+) => {
        /// Rows of tokens and keys.
        pub const AUTH_ROWS: &[Row<Settings>] = &[ $( Row {
            key: concat!("auth.", $key), field: $field, what: $what, effect: $effect, when: $when, restart: $restart,
        }, )+ ];
    };
}

rows! {
    "hmac_secrets", restart: false => list!("texts of at least 32 bytes, at most 16 of them", secret: true, hmac_secrets);
        "Shared secrets, any of which signs tokens with HS256, HS384 or HS512.";
        "Verified on the shard, some microseconds each; with several secrets, all are tried.";
        "When the backend that makes tokens can keep a secret. List the new and the old one while it is rotated.";
    "hmac_secrets_file", restart: false => text!("a path", hmac_secrets_file);
        "File that holds the secrets, one a line. Not together with auth.hmac_secrets.";
        "Read at start and at each reload.";
        "When secrets are mounted as files.";
    "public_keys_files", restart: false => list!("paths", secret: false, public_keys_files);
        "PEM files with public keys that sign tokens: RSA (RS256, RS384, RS512; 2048 to 8192 bits), P-256 (ES256), P-384 (ES384), P-521 (ES512), Ed25519 (EdDSA). With auth.jwks_file at most 64 keys.";
        "Verified on the pool: some 30 microseconds of CPU for RSA with 2048 bits, 80 for Ed25519, 100 for P-256, 530 for P-521.";
        "When the gateway must not be able to make tokens. List the new and the old key while it is rotated.";
    "jwks_file", restart: false => text!("a path", jwks_file);
        "File with a JSON Web Key Set, whose signature keys count beside auth.public_keys_files.";
        "Read at start and at each reload.";
        "When something else fetches the set of an identity provider.";
    "jwks_url", restart: false => text!("http:// or https:// and a host, without user and password", jwks_url);
        "Where an identity provider publishes its JSON Web Key Set: at most 64 keys and 256 KiB, no redirect, no proxy. While it can not be fetched, the keys of the last time stay; tokens of a key that is not known yet are asked to come again (error 111, temporary).";
        "One request at start, one per auth.jwks_refresh_ms, and one when a token names an unknown key, at most every 5 s.";
        "When tokens come from an identity provider that rotates its keys.";
    "jwks_ca_file", restart: false => text!("a path", jwks_ca_file);
        "PEM file of the certificate authorities that may vouch for auth.jwks_url. Empty: those of the system (also SSL_CERT_FILE).";
        "Read at each fetch.";
        "When the identity provider has a certificate of a private authority.";
    "jwks_refresh_ms", restart: false => integer!("ms" 1_000..=86_400_000, jwks_refresh_ms);
        "From one good fetch of auth.jwks_url to the next; after a failed one it is tried again within 10 s.";
        "A key that its publisher took back is trusted for up to this long.";
        "Lower it when withdrawn keys must stop working sooner.";
    "jwks_timeout_ms", restart: false => integer!("ms" 100..=60_000, jwks_timeout_ms);
        "How long one fetch of auth.jwks_url may take, from resolving its name to the last byte.";
        "None.";
        "Raise it for a slow identity provider.";
    "audience", restart: false => text!("text", audience);
        "Must be the token's aud, or one of them. Empty: not asked.";
        "None.";
        "Whenever the same keys sign tokens for other services.";
    "issuer", restart: false => text!("text", issuer);
        "Must be the token's iss. Empty: not asked.";
        "None.";
        "Whenever the same keys sign for several issuers.";
    "user_id_claim", restart: false => text!("the name of a claim", user_id_claim);
        "Claim that holds the user id, a text.";
        "A second pass over the claims when it is not sub.";
        "When the identity provider's sub is not the id that the application uses.";
    "leeway_ms", restart: false => integer!("ms" 0..=300_000, leeway_ms);
        "How far the issuer's clock may be from this host's, for exp, nbf and expire_at.";
        "A token is good for this much longer.";
        "Raise it when tokens are refused as not yet valid.";
    "token_bytes_max", restart: false => integer!("bytes" 256..=1_048_576, token_bytes_max);
        "Bytes of a token. Over: invalid. limits.message_bytes_max holds for the message around it, too.";
        "Memory of each token that waits for the pool.";
        "Raise it for tokens with large info or many channels.";
    "token_channels_max", restart: false => integer!("channels" 0..=100_000, token_channels_max);
        "Channels that one connection token may grant. Over: invalid.";
        "Work of one connect.";
        "Raise it with limits.subscriptions_per_connection_max.";
    "pool_threads", restart: true => integer!("threads" 1..=64, pool_threads);
        "Threads that verify tokens of public keys.";
        "One core busy each while tokens wait; a P-256 or Ed25519 signature takes some 100 microseconds.";
        "Raise it when ringway_token_pool_full_total moves and cores are free.";
    "pool_queue_max", restart: true => integer!("tokens" 1..=1_048_576, pool_queue_max);
        "Tokens that wait for the pool. Over: error 111, temporary.";
        "Up to auth.token_bytes_max each; clients give up after 5 s, so more than 5 s of work is never useful.";
        "Raise it with auth.pool_threads for larger reconnect storms.";
    "revoked_tokens_max", restart: false => integer!("tokens" 0..=10_000_000, revoked_tokens_max);
        "Revoked token ids that are remembered. Over: those that would expire soonest are forgotten, counted in ringway_revoked_tokens_forgotten_total.";
        "About 150 bytes each.";
        "Above the number of tokens revoked within the life of a token.";
}
