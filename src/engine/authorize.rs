//! Who may do what in a channel.
//!
//! In: a namespace's options, the channel's name, and an identity that the session has proved (a user id comes from a
//! checked token or a backend, `""` is anonymous). Out: yes, no with the error a client gets, or "its token decides".
//!
//! Two marks in a name narrow what the options open, never the other way round:
//!
//! | mark | meaning |
//! |---|---|
//! | `$` at the start of the name, or of what follows the prefix | private: only with a subscription token, or as a subscriber |
//! | `#` and users behind it, separated by commas (if `user_limited`) | only these users; they need no other right to subscribe |
//!
//! Invariants: what a client says about itself is no argument here; a name whose user list lacks a user lets that user
//! do nothing, whatever the options say; an anonymous client is in no list.

use alloc::string::String;

use ringway_wire::centrifuge::reply::ClientError;

use crate::namespace::{Allow, EventMode, Namespace, rest};
use crate::options::Access;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// User id that was proved; empty: anonymous.
    pub user: &'a str,
    /// It is subscribed to the channel now.
    pub subscribed: bool,
}

/// Whether a subscribe may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeRight {
    /// It may.
    Granted,
    /// It may if the token that came with it is good, and not otherwise.
    NeedsToken,
    /// It may not; a token would not help, or none came.
    Denied(ClientError),
}

/// Whether a client may subscribe. `token_given`: a subscription token came with the command; it is checked even where
/// none is needed, because it also limits (expiry, bound client) and says things (info, overrides).
pub fn subscribe(namespace: &Namespace, channel: &str, who: &Who<'_>, token_given: bool) -> SubscribeRight {
    let denied = SubscribeRight::Denied(ClientError::PermissionDenied);
    let open = match (listing(namespace, channel, who.user), namespace.subscribe) {
        (Listing::Left, _) => return denied,
        (Listing::Listed, _) | (Listing::Open, Allow::Anyone) => true,
        (Listing::Open, Allow::Authenticated) => !who.user.is_empty(),
        (Listing::Open, Allow::Token) => false,
        // Not even a token: no client subscribes by itself in such a namespace.
        (Listing::Open, Allow::Subscriber | Allow::Backend) => return denied,
    };
    match (token_given, open && !is_private(channel)) {
        (true, _) => SubscribeRight::NeedsToken,
        (false, true) => SubscribeRight::Granted,
        (false, false) => denied,
    }
}

/// Whether a backend decides about a subscribe without a token, in place of `subscribe`. Names that say themselves who
/// may (users, or a token) are not its business.
pub fn backend_decides(namespace: &Namespace, channel: &str, user: &str) -> bool {
    let open = listing(namespace, channel, user) == Listing::Open;
    namespace.subscribe_events == EventMode::Ask && open && !is_private(channel)
}

/// Whether a client may publish.
///
/// # Errors
/// 103: it may not.
pub fn publish(namespace: &Namespace, channel: &str, who: &Who<'_>) -> Result<(), ClientError> {
    act(namespace.publish, namespace, channel, who)
}

/// Whether a client may read presence and its counts.
///
/// # Errors
/// 108: there is no presence; 103: it may not.
pub fn read_presence(namespace: &Namespace, channel: &str, who: &Who<'_>) -> Result<(), ClientError> {
    if !namespace.presence {
        return Err(ClientError::NotAvailable);
    }
    act(namespace.read_presence, namespace, channel, who)
}

/// Whether a client may read history.
///
/// # Errors
/// 108: there is none; 103: it may not.
pub fn read_history(namespace: &Namespace, channel: &str, who: &Who<'_>) -> Result<(), ClientError> {
    if namespace.history_size == 0 {
        return Err(ClientError::NotAvailable);
    }
    act(namespace.read_history, namespace, channel, who)
}

/// The channel in which a user gets messages of its own, and to which all its connections are subscribed; none when
/// that is off, for anonymous clients, and for user ids that a user list cannot hold: one with a comma would admit
/// others. Its length is not checked here.
pub fn personal_channel(access: &Access, user: &str) -> Option<String> {
    let fits = !user.is_empty() && !user.contains(',') && !user.bytes().any(|byte| byte.is_ascii_control());
    (access.personal_channel && fits).then(|| match &*access.personal_namespace {
        "" => alloc::format!("#{user}"),
        namespace => alloc::format!("{namespace}:#{user}"),
    })
}

/// Whether the name marks its channel as private.
pub fn is_private(channel: &str) -> bool {
    channel.starts_with('$') || rest(channel).starts_with('$')
}

/// The rule of everything but subscribing.
fn act(allow: Allow, namespace: &Namespace, channel: &str, who: &Who<'_>) -> Result<(), ClientError> {
    let may = match allow {
        _ if listing(namespace, channel, who.user) == Listing::Left => false,
        // The token that a private channel needs came with the subscribe.
        Allow::Anyone | Allow::Authenticated if is_private(channel) && !who.subscribed => false,
        Allow::Anyone => true,
        Allow::Authenticated => !who.user.is_empty(),
        Allow::Subscriber => who.subscribed,
        Allow::Token | Allow::Backend => false,
    };
    if may { Ok(()) } else { Err(ClientError::PermissionDenied) }
}

/// Where a user stands in the user list of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// There is no list.
    Open,
    /// Named.
    Listed,
    /// Not named.
    Left,
}

/// The list begins at the first `#`, so that a user id which contains one can be listed, alone or with others.
fn listing(namespace: &Namespace, channel: &str, user: &str) -> Listing {
    match channel.split_once('#') {
        Some((_, users)) if namespace.user_limited => {
            let listed = !user.is_empty() && users.split(',').any(|one| one == user);
            if listed { Listing::Listed } else { Listing::Left }
        }
        _ => Listing::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    use crate::namespace::Namespaces;

    const ALLOWS: [Allow; 5] = [Allow::Backend, Allow::Token, Allow::Subscriber, Allow::Authenticated, Allow::Anyone];
    const ANONYMOUS: Who<'_> = Who { user: "", subscribed: false };
    const ANNE: Who<'_> = Who { user: "anne", subscribed: false };
    const ANNE_IN: Who<'_> = Who { user: "anne", subscribed: true };
    const ANONYMOUS_IN: Who<'_> = Who { user: "", subscribed: true };

    fn all(allow: Allow) -> Namespace {
        Namespace {
            subscribe: allow,
            publish: allow,
            read_presence: allow,
            read_history: allow,
            presence: true,
            history_size: 1,
            history_ttl_ms: 1,
            ..Namespace::closed("ns")
        }
    }

    /// Without and with a token: `+` granted, `?` the token decides, `-` denied.
    fn subscribes(namespace: &Namespace, channel: &str, who: &Who<'_>) -> String {
        [false, true]
            .map(|token| match subscribe(namespace, channel, who, token) {
                SubscribeRight::Granted => '+',
                SubscribeRight::NeedsToken => '?',
                SubscribeRight::Denied(ClientError::PermissionDenied) => '-',
                SubscribeRight::Denied(_) => '!',
            })
            .iter()
            .collect()
    }

    #[test]
    fn every_right_to_subscribe() {
        //                    anonymous   anne
        let plain = [
            (Allow::Backend, ["--", "--"]),
            (Allow::Token, ["-?", "-?"]),
            (Allow::Subscriber, ["--", "--"]),
            (Allow::Authenticated, ["-?", "+?"]),
            (Allow::Anyone, ["+?", "+?"]),
        ];
        let private = [
            (Allow::Backend, ["--", "--"]),
            (Allow::Token, ["-?", "-?"]),
            (Allow::Subscriber, ["--", "--"]),
            (Allow::Authenticated, ["-?", "-?"]),
            (Allow::Anyone, ["-?", "-?"]),
        ];
        for (names, table) in [(&["ns:a", "a", "ns:a$", ""][..], plain), (&["$ns:a", "ns:$a", "$a", "$"], private)] {
            for (allow, expected) in table {
                for name in names {
                    let namespace = all(allow);
                    let got = [ANONYMOUS, ANNE].map(|who| subscribes(&namespace, name, &who));
                    assert_eq!(got, expected, "{allow:?} {name:?}");
                }
            }
        }
        // Names with users: the options do not matter, unless the name is private, too.
        for allow in ALLOWS {
            let namespace = all(allow);
            for name in ["ns:a#anne", "ns:#anne", "#anne", "a#bob,anne", "a#anne,bob", "a#bob,anne,carl", "#,anne"] {
                assert_eq!(subscribes(&namespace, name, &ANNE), "+?", "{allow:?} {name}");
                assert_eq!(subscribes(&namespace, name, &ANONYMOUS), "--", "{allow:?} {name}");
            }
            for name in
                ["a#bob", "a#", "#", "a#,", "a#anne2", "a#ann", "a#Anne", "a# anne", "a#anne#x", "a#x#anne", "$a#bob"]
            {
                assert_eq!(subscribes(&namespace, name, &ANNE), "--", "{allow:?} {name}");
                assert_eq!(subscribes(&namespace, name, &ANONYMOUS), "--", "{allow:?} {name}");
            }
            for name in ["$a#anne", "ns:$a#anne", "$#anne"] {
                assert_eq!(subscribes(&namespace, name, &ANNE), "-?", "{allow:?} {name}");
            }
            // Where `#` means nothing, it is a character.
            let free = Namespace { user_limited: false, ..namespace.clone() };
            for who in [ANNE, ANONYMOUS] {
                assert_eq!(subscribes(&free, "a#bob", &who), subscribes(&free, "a", &who), "{allow:?}");
            }
        }
    }

    #[test]
    fn every_right_to_publish_and_read() {
        type Rule = fn(&Namespace, &str, &Who<'_>) -> Result<(), ClientError>;
        let rules: [(&str, Rule); 3] =
            [("publish", publish), ("read_presence", read_presence), ("read_history", read_history)];
        let whos = [ANONYMOUS, ANONYMOUS_IN, ANNE, ANNE_IN];
        let (no, yes) = (Err(ClientError::PermissionDenied), Ok(()));
        //                              anonymous, subscribed; anne, subscribed
        let plain = [
            (Allow::Backend, [no, no, no, no]),
            (Allow::Token, [no, no, no, no]),
            (Allow::Subscriber, [no, yes, no, yes]),
            (Allow::Authenticated, [no, no, yes, yes]),
            (Allow::Anyone, [yes, yes, yes, yes]),
        ];
        for (what, rule) in rules {
            for (allow, expected) in plain {
                let namespace = all(allow);
                assert_eq!(whos.map(|who| rule(&namespace, "ns:a", &who)), expected, "{what} {allow:?}");
                // Private: as above, and only for subscribers.
                let [_, anonymous_in, _, anne_in] = expected;
                let private = [no, anonymous_in, no, anne_in];
                for name in ["$ns:a", "ns:$a"] {
                    assert_eq!(whos.map(|who| rule(&namespace, name, &who)), private, "{what} {allow:?} {name}");
                }
                // A list takes away and gives nothing.
                let [.., anne, anne_in] = expected;
                let listed = [no, no, anne, anne_in];
                assert_eq!(whos.map(|who| rule(&namespace, "a#anne", &who)), listed, "{what} {allow:?}");
                assert_eq!(whos.map(|who| rule(&namespace, "a#bob", &who)), [no; 4], "{what} {allow:?}");
                let free = Namespace { user_limited: false, ..namespace };
                assert_eq!(whos.map(|who| rule(&free, "a#bob", &who)), expected, "{what} {allow:?}");
            }
        }
    }

    #[test]
    fn what_a_namespace_lacks_cannot_be_read() {
        let namespace = Namespace { presence: false, history_size: 0, ..all(Allow::Anyone) };
        assert_eq!(read_presence(&namespace, "ns:a", &ANNE_IN), Err(ClientError::NotAvailable));
        assert_eq!(read_history(&namespace, "ns:a", &ANNE_IN), Err(ClientError::NotAvailable));
    }

    fn access(namespace: &str) -> Access {
        Access { personal_channel: true, personal_namespace: namespace.into(), ..Access::closed("/") }
    }

    #[test]
    fn personal_channels() {
        assert_eq!(personal_channel(&access(""), "anne").as_deref(), Some("#anne"));
        assert_eq!(personal_channel(&access("direct"), "anne").as_deref(), Some("direct:#anne"));
        for user in ["", "a,b", ",", "a\n", "\0"] {
            assert_eq!(personal_channel(&access("direct"), user), None, "{user:?}");
        }
        assert_eq!(personal_channel(&Access { personal_channel: false, ..access("") }, "anne"), None);
    }

    /// Few characters, so that marks meet and users equal parts of names.
    fn marked() -> impl Strategy<Value = String> {
        "[ab:#,$]{0,10}"
    }

    proptest! {
        /// Whoever is not listed gets nothing, with any option and any token.
        #[test]
        fn no_name_lets_a_user_in_who_is_not_listed(
            channel in marked(),
            user in marked(),
            subscribed: bool,
            token: bool,
            allow in 0..ALLOWS.len(),
        ) {
            let namespace = all(ALLOWS[allow]);
            let who = Who { user: &user, subscribed };
            let Some(list) = channel.find('#').map(|at| &channel[at + 1..]) else { return Ok(()) };
            let listed: Vec<&str> = list.split(',').collect();
            if user.is_empty() || !listed.contains(&&*user) {
                let denied = Err(ClientError::PermissionDenied);
                prop_assert_eq!(
                    subscribe(&namespace, &channel, &who, token),
                    SubscribeRight::Denied(ClientError::PermissionDenied)
                );
                prop_assert_eq!(publish(&namespace, &channel, &who), denied);
                prop_assert_eq!(read_presence(&namespace, &channel, &who), denied);
                prop_assert_eq!(read_history(&namespace, &channel, &who), denied);
            }
        }

        /// A `$` at either place is never passed without a token.
        #[test]
        fn no_private_channel_is_open(name in marked(), user in marked(), subscribed: bool, allow in 0..ALLOWS.len()) {
            for channel in [alloc::format!("${name}"), alloc::format!("ns:${name}")] {
                let namespace = all(ALLOWS[allow]);
                let who = Who { user: &user, subscribed };
                prop_assert_ne!(subscribe(&namespace, &channel, &who, false), SubscribeRight::Granted);
                if !subscribed {
                    prop_assert!(publish(&namespace, &channel, &who).is_err());
                    prop_assert!(read_history(&namespace, &channel, &who).is_err());
                }
            }
        }

        /// What an anonymous client may do, everyone with a user id may, unless the name lists users.
        #[test]
        fn a_user_id_takes_nothing_away(channel in marked(), user in "[ab]{1,3}", token: bool, allow in 0..ALLOWS.len()) {
            let namespace = all(ALLOWS[allow]);
            let anonymous = subscribe(&namespace, &channel, &ANONYMOUS, token);
            if !matches!(anonymous, SubscribeRight::Denied(_)) {
                let who = Who { user: &user, subscribed: false };
                prop_assert_eq!(subscribe(&namespace, &channel, &who, token), anonymous);
            }
        }

        /// A personal channel is in the personal namespace, and open to its user alone.
        #[test]
        fn a_personal_channel_has_one_user(user in marked(), other in marked(), personal in "(direct)?") {
            let direct = Namespace { name: "direct".into(), ..all(Allow::Anyone) };
            let namespaces = Namespaces::new(all(Allow::Anyone), [direct].into()).unwrap();
            let Some(channel) = personal_channel(&access(&personal), &user) else {
                prop_assert!(user.is_empty() || user.contains(','));
                return Ok(());
            };
            let (_, namespace) = namespaces.resolve(&channel).unwrap();
            prop_assert_eq!(&*namespace.name == "direct", personal == "direct");
            let right = |user| subscribe(namespace, &channel, &Who { user, subscribed: false }, false);
            prop_assert_eq!(right(&user), SubscribeRight::Granted);
            if other != user {
                prop_assert_eq!(right(&other), SubscribeRight::Denied(ClientError::PermissionDenied));
            }
        }
    }
}
