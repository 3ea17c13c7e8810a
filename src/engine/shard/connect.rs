//! From the connect command to an open session.
//!
//! In: a connect command, the verdict about its token, a backend's word, owners' answers for server-side
//! subscriptions. Out: one answer that carries all of it.
//!
//! ```text
//! connect ─> token or backend ─> identity ─> room for one more? ─> server-side subscriptions asked for ─> all answered ─> result
//!            nothing more is read from the client until here ──────────────────────────────────────────────────^
//! ```
//! Invariants: commands behind the connect command wait, unread, and are carried out in their order; a server-side
//! subscription joins its list with the owner's answer like any other, and what is published before the connect result
//! is out waits behind it in the outbox.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::ConnectRequest;
use ringway_wire::centrifuge::reply::{ClientError, ConnectResult, ReplyWriter, ServerSubscription};
use ringway_wire::close::CloseReason;

use super::epoch_text::EpochText;
use super::events::ClientEvent;
use super::parked_state::ParkedState;
use super::subscribe::ttl_s;
use super::{Shard, VERSION};
use crate::authorize;
use crate::connection::{Connection, Phase};
use crate::identity::About;
use crate::ids::ConnId;
use crate::lane_message::RecoverFrom;
use crate::metrics::Metric;
use crate::namespace::EventMode;
use crate::opening::{Granted, Known, Opening};
use crate::session::{AskWhat, Stage, client_id, epoch};
use crate::subscription::AnswerTo;
use crate::tokens::{ConnectClaims, TokenAsk, TokenCheck, TokenError, TokenSubscription};

impl Shard {
    pub(super) fn connect(&mut self, conn: ConnId, id: u32, request: &ConnectRequest<'_>) {
        let told = self.options.access.connect_events == EventMode::Notify;
        let Some(session) = self.session_mut(conn) else { return };
        let known = request.subs.iter().filter(|sub| sub.recover).map(|sub| Known {
            channel: (&*sub.channel).into(),
            from: RecoverFrom { offset: sub.offset, epoch: epoch(&sub.epoch) },
        });
        session.stage = Stage::Opening;
        session.software_is(&request.name);
        let mut opening = Opening { command: id, known: known.collect(), ..Opening::default() };
        if told {
            opening.name = (&*request.name).into();
            opening.version = (&*request.version).into();
            opening.request_data = request.data.into();
        }
        session.begin_opening(opening);
        let number = self.new_request();
        if !request.token.is_empty() {
            let ask = TokenAsk { core: self.options.core, conn, ask: number };
            match self.options.tokens.clone().check_connect(&request.token, ask) {
                TokenCheck::Done(verdict) => self.connect_checked(conn, verdict),
                TokenCheck::Later => self.wait(conn, number, AskWhat::Connect),
            }
        } else if self.options.access.connect_events == EventMode::Ask {
            let event = ClientEvent::Connect {
                user: "",
                info: &[],
                meta: &[],
                name: &request.name,
                version: &request.version,
                data: request.data,
            };
            match self.ask_backend(conn, number, &event) {
                Ok(()) => self.wait(conn, number, AskWhat::Connect),
                Err(denied) => self.connect_denied(conn, denied.into()),
            }
        } else if self.options.access.anonymous {
            self.admit(conn, ConnectClaims::default(), Box::default());
        } else {
            self.close(conn, CloseReason::PermissionDenied);
        }
    }

    /// A token's verdict.
    pub(super) fn connect_checked(&mut self, conn: ConnId, verdict: Result<ConnectClaims, TokenError>) {
        match verdict {
            Ok(claims) => self.admit(conn, claims, Box::default()),
            Err(TokenError::Invalid) => {
                self.metrics.add(Metric::TokensInvalid, 1);
                self.close(conn, CloseReason::InvalidToken);
            }
            Err(TokenError::Expired) => {
                self.metrics.add(Metric::TokensExpired, 1);
                self.refuse_connect(conn, &Refusal::of(ClientError::TokenExpired));
            }
            Err(TokenError::Busy) => {
                self.refuse_connect(conn, &Refusal::of(ClientError::TooManyRequests));
            }
        }
    }

    /// Answers the connect command with an error. The client closes, or the connect clock does; what it sends until
    /// then is not carried out. One that only listens is closed, with a code of the same meaning.
    pub(super) fn refuse_connect(&mut self, conn: ConnId, refusal: &Refusal<'_>) {
        self.metrics.add(Metric::CommandErrors, 1);
        let Some(session) = self.session_mut(conn) else { return };
        let (form, uni) = (session.form, session.uni);
        if uni {
            return self.close(conn, refusal.close_reason());
        }
        session.stage = Stage::Refused;
        let Some(opening) = session.take_opening() else { return };
        let mut writer = ReplyWriter::resume(form, &mut self.replies);
        writer.error_custom(opening.command, refusal.code, refusal.message, refusal.temporary);
        if !self.release(conn) {
            self.send_replies(conn, form);
        }
    }

    /// The client is who the claims say. It comes in if its user has not too many connections.
    pub(super) fn admit(&mut self, conn: ConnId, claims: ConnectClaims, data: Box<[u8]>) {
        if self.counts_connections() && !claims.user.is_empty() {
            return self.ask_for_place(conn, claims, data);
        }
        self.admit_counted(conn, claims, data);
    }

    /// There is room for it. Its server-side subscriptions are asked for; with none, it is in.
    /// While some node goes away, what it knew of the user comes first.
    pub(super) fn admit_counted(&mut self, conn: ConnId, claims: ConnectClaims, data: Box<[u8]>) {
        if self.may_be_parked(&claims.user) {
            return self.ask_for_parked(conn, claims, data);
        }
        self.let_in(conn, claims, data, None);
    }

    /// As [`Shard::admit`], with what another node knew of the user.
    pub(super) fn let_in(
        &mut self,
        conn: ConnId,
        claims: ConnectClaims,
        data: Box<[u8]>,
        parked: Option<&ParkedState>,
    ) {
        let now_ms = self.now_ms;
        let personal = authorize::personal_channel(&self.options.access, &claims.user);
        let Some(session) = self.session_mut(conn) else { return };
        let Some(opening) = session.opening_mut() else { return };
        opening.data = data;
        session.admitted = true;
        session.identity.user = claims.user;
        let refreshed = parked.and_then(|parked| parked.conn_info.clone());
        session.identity.set_about(About {
            is_refreshed: refreshed.is_some(),
            info: refreshed.unwrap_or(claims.info),
            meta: claims.meta,
            token_id: claims.token_id,
        });
        session.identity.expires = claims.expires_in_ms.map(|after_ms| now_ms + after_ms).into();
        self.join_user(conn);
        // In front of what it is told of the client's server-side subscriptions.
        if self.options.access.connect_events == EventMode::Notify {
            self.tell_connected(conn);
        }
        let personal = personal.map(|channel| TokenSubscription { channel: channel.into(), ..Default::default() });
        for subscription in claims.subscriptions.into_iter().chain(personal) {
            if self.server_subscribe(conn, subscription, None, AnswerTo::Connect)
                && let Some(opening) = self.opening_mut(conn)
            {
                opening.waiting += 1;
            }
        }
        let restored = parked.map_or(0, |parked| self.restore(conn, parked, AnswerTo::Connect));
        if let Some(opening) = self.opening_mut(conn) {
            opening.waiting += restored;
        }
        self.open_if_complete(conn);
    }

    fn opening_mut(&mut self, conn: ConnId) -> Option<&mut Opening> {
        self.session_mut(conn)?.opening_mut()
    }

    /// An owner has granted (or refused: none) a server-side subscription of a connect command.
    pub(super) fn opening_answered(&mut self, conn: ConnId, granted: Option<Granted>) {
        let Some(opening) = self.opening_mut(conn) else { return };
        opening.waiting -= 1;
        opening.granted.extend(granted);
        self.open_if_complete(conn);
    }

    /// Answers the connect command when nothing is missing any more, and goes on with what waited behind it.
    pub(super) fn open_if_complete(&mut self, conn: ConnId) {
        let Some(session) = self.session_mut(conn) else { return };
        if session.opening().is_none_or(|opening| opening.waiting > 0) || session.stage != Stage::Opening {
            return;
        }
        let form = session.form;
        session.stage = Stage::Open;
        let Some(opening) = session.take_opening() else { return };
        self.arm_first_ping(conn);
        self.metrics.add(Metric::SessionsConnected, 1);
        self.write_connect_result(conn, form, &opening);
        if self.release(conn) {
            // Nothing behind it is no message; an empty one would be refused.
            if !opening.rest.is_empty() {
                self.client_commands(conn, form, &opening.rest);
            }
            // What had been received behind that message.
            self.received(conn, &mut []);
        }
    }

    fn tell_connected(&mut self, conn: ConnId) {
        let Some(session) = self.session_mut(conn) else { return };
        let (identity, Some(opening)) = (session.identity.clone(), session.take_opening()) else { return };
        let event = ClientEvent::Connect {
            user: &identity.user,
            info: identity.info(),
            meta: identity.meta(),
            name: &opening.name,
            version: &opening.version,
            data: &opening.request_data,
        };
        self.tell_backend(conn, &event);
        if let Some(session) = self.session_mut(conn) {
            session.begin_opening(opening);
        }
    }

    fn write_connect_result(&mut self, conn: ConnId, form: Form, opening: &Opening) {
        let Some(Connection { phase: Phase::Client(session), .. }) = self.connections.get(conn.slot, conn.generation)
        else {
            return;
        };
        let interval_ms = self.options.limits.ping_interval_ms as u64;
        let expires_at_ms = session.identity.expires.ms();
        let uni = session.uni;
        let epochs: Vec<EpochText> =
            opening.granted.iter().map(|granted| EpochText::new(granted.subscribed.top.epoch)).collect();
        let client = client_id(self.options.boot, self.options.core, conn);
        let result = ConnectResult {
            client: client.as_ref(),
            version: VERSION,
            expires: expires_at_ms.is_some(),
            ttl: ttl_s(expires_at_ms, self.now_ms),
            data: (!opening.data.is_empty()).then_some(&*opening.data),
            // The protocol counts seconds; the client waits at least as long as we do.
            ping: interval_ms.div_ceil(1_000) as u32,
            pong: interval_ms > 0 && !uni,
            ..ConnectResult::default()
        };
        let subs = opening.granted.iter().zip(&epochs).map(|(granted, epoch)| ServerSubscription {
            channel: &granted.channel,
            result: self.subscribe_result(granted, epoch.as_str()),
            publications: granted.subscribed.missed(),
        });
        let subs: Vec<_> = subs.collect();
        let mut writer = ReplyWriter::resume(form, &mut self.replies).bare(uni);
        if uni {
            writer.push_connect(&result, subs.into_iter());
        } else {
            writer.connect_with_subs(opening.command, &result, subs.into_iter());
        }
    }
}

/// Why a connect command is refused.
pub(super) struct Refusal<'a> {
    pub(super) code: u32,
    pub(super) message: &'a str,
    pub(super) temporary: bool,
}

impl Refusal<'static> {
    pub(super) const fn of(error: ClientError) -> Self {
        Refusal { code: error.code(), message: error.text(), temporary: error.temporary() }
    }
}

impl Refusal<'_> {
    const fn close_reason(&self) -> CloseReason {
        if self.temporary {
            CloseReason::TooManyRequests
        } else if self.code == ClientError::TokenExpired.code() {
            CloseReason::Expired
        } else {
            CloseReason::PermissionDenied
        }
    }
}
