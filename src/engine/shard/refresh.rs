//! Connections and subscriptions that expire, and the tokens that prolong them.
//!
//! In: refresh commands, verdicts, time. Out: replies, new deadlines, ended subscriptions and connections.
//! Invariant: what has expired ends `expired_grace_ms` later, so that a client whose new token is on its way keeps
//! what it has (the SDK asks for one at the end of the ttl that it was told).

use ringway_wire::centrifuge::reply::{ClientError, RefreshResult, ReplyWriter};
use ringway_wire::close::CloseReason;

use super::Shard;
use super::subscribe::ttl_s;
use crate::identity::About;
use crate::ids::ConnId;
use crate::metrics::Metric;
use crate::session::{AskWhat, client_id};
use crate::subscription::SubscriptionExtra;
use crate::tokens::{ConnectClaims, SubscribeClaims, TokenAsk, TokenCheck, TokenError};

/// Text of an unsubscribe push when a subscription has expired; the SDK fetches a new token and subscribes again.
const EXPIRED: (u32, &str) = (2501, "subscription expired");

impl Shard {
    pub(super) fn refresh(&mut self, conn: ConnId, id: u32, token: &str) {
        let number = self.new_request();
        let ask = TokenAsk { core: self.options.core, conn, ask: number };
        match self.options.tokens.clone().check_connect(token, ask) {
            TokenCheck::Done(verdict) => self.refresh_checked(conn, id, verdict),
            TokenCheck::Later => self.wait(conn, number, AskWhat::Refresh { command: id }),
        }
    }

    pub(super) fn refresh_checked(&mut self, conn: ConnId, id: u32, verdict: Result<ConnectClaims, TokenError>) {
        let now_ms = self.now_ms;
        let Some(session) = self.session_mut(conn) else { return };
        let form = session.form;
        let claims = match verdict {
            Ok(claims) if &*claims.user == session.user() => claims,
            Ok(_) | Err(TokenError::Invalid) => {
                self.metrics.add(Metric::TokensInvalid, 1);
                return self.close(conn, CloseReason::InvalidToken);
            }
            Err(TokenError::Expired) => {
                self.metrics.add(Metric::TokensExpired, 1);
                return self.refuse(form, id, ClientError::TokenExpired);
            }
            Err(TokenError::Busy) => return self.refuse(form, id, ClientError::TooManyRequests),
        };
        let expires_at_ms = claims.expires_in_ms.map(|after_ms| now_ms + after_ms);
        let (info, meta, token_id) = (claims.info, claims.meta, claims.token_id);
        session.identity.set_about(About { info, meta, token_id, is_refreshed: false });
        session.identity.expires = expires_at_ms.into();
        self.arm_client(conn);
        let client = client_id(self.options.boot, self.options.core, conn);
        let result = RefreshResult {
            client: client.as_ref(),
            version: super::VERSION,
            expires: expires_at_ms.is_some(),
            ttl: ttl_s(expires_at_ms, now_ms),
        };
        ReplyWriter::resume(form, &mut self.replies).refresh(id, &result);
    }

    pub(super) fn sub_refresh(&mut self, conn: ConnId, id: u32, channel: &str, token: &str) {
        let number = self.new_request();
        let ask = TokenAsk { core: self.options.core, conn, ask: number };
        match self.options.tokens.clone().check_subscribe(token, ask) {
            TokenCheck::Done(verdict) => self.sub_refresh_checked(conn, id, channel, verdict),
            TokenCheck::Later => {
                self.wait(conn, number, AskWhat::SubRefresh { command: id, channel: channel.into() });
            }
        }
    }

    pub(super) fn sub_refresh_checked(
        &mut self,
        conn: ConnId,
        id: u32,
        channel: &str,
        verdict: Result<SubscribeClaims, TokenError>,
    ) {
        let now_ms = self.now_ms;
        let Some(form) = self.form_of(conn) else { return };
        let claims = match verdict {
            Ok(claims) => claims,
            Err(TokenError::Invalid) => {
                self.metrics.add(Metric::TokensInvalid, 1);
                return self.refuse(form, id, ClientError::PermissionDenied);
            }
            Err(TokenError::Expired) => {
                self.metrics.add(Metric::TokensExpired, 1);
                return self.refuse(form, id, ClientError::TokenExpired);
            }
            Err(TokenError::Busy) => return self.refuse(form, id, ClientError::TooManyRequests),
        };
        // Old Python SDKs send no channel: the token names it.
        let channel = if channel.is_empty() { &*claims.subscription.channel } else { channel };
        if !self.is_for(conn, channel, &claims) {
            self.metrics.add(Metric::TokensInvalid, 1);
            return self.close(conn, CloseReason::InvalidToken);
        }
        let local = self.fanouts.find(channel);
        let Some(session) = self.session_mut(conn) else { return };
        let Some(index) = local.and_then(|local| session.subscription(local)) else {
            return self.refuse(form, id, ClientError::PermissionDenied);
        };
        let expires_at_ms = claims.subscription.expires_in_ms.map(|after_ms| now_ms + after_ms);
        let info = claims.subscription.info;
        let data = session.subscriptions[index].data().into();
        session.subscriptions[index].set_extra(SubscriptionExtra { info, expires_at_ms, data });
        self.arm_client(conn);
        let ttl = ttl_s(expires_at_ms, now_ms);
        ReplyWriter::resume(form, &mut self.replies).sub_refresh(id, expires_at_ms.is_some(), ttl);
    }

    /// Ends what has expired more than `expired_grace_ms` ago. False: the connection itself has ended.
    pub(super) fn expire(&mut self, conn: ConnId) -> bool {
        let overdue_ms = self.now_ms.saturating_sub(self.options.limits.expired_grace_ms as u64);
        let Some(session) = self.session(conn) else { return false };
        let overdue = |at_ms: Option<u64>| at_ms.is_some_and(|at_ms| at_ms <= overdue_ms);
        if overdue(session.identity.expires.ms()) {
            self.close(conn, CloseReason::Expired);
            return false;
        }
        while let Some((index, server_side)) = self.session(conn).and_then(|session| {
            let index = session
                .subscriptions
                .iter()
                .position(|subscription| overdue(subscription.expires_at_ms()) && subscription.place().is_some())?;
            Some((index, session.subscriptions[index].traits().server_side))
        }) {
            if server_side {
                self.close(conn, CloseReason::SubscriptionExpired);
                return false;
            }
            self.end_from_server(conn, index, EXPIRED.0, EXPIRED.1);
        }
        self.flush_replies(conn);
        true
    }
}
