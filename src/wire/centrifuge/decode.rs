//! Which field of a command goes where, once for both forms.
//!
//! In: fields as `json_scan` (by name) or `protobuf` (by number) find them. Out: one [`Command`].
//!
//! One function per message of the protocol. Each maps names to numbers, unknown names to 0, and skips numbers that it
//! does not know. Numbers and names: CLIENT-PROTOCOL §3 and §5.

use alloc::borrow::Cow;

use super::command::{
    Command, CommandError, ConnectRequest, ConnectSubscription, HistoryRequest, Request, StreamPosition,
    SubscribeRequest,
};
use super::fields::ReadFields;

pub(super) fn command<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<Command<'a>, CommandError> {
    let mut id = 0;
    let mut request = None;
    let mut request_number = u32::MAX;
    while let Some(number) = fields.next_field(|name| match name {
        b"id" => 1,
        b"connect" => 4,
        b"subscribe" => 5,
        b"unsubscribe" => 6,
        b"publish" => 7,
        b"presence" => 8,
        b"presence_stats" => 9,
        b"history" => 10,
        b"ping" => 11,
        b"send" => 12,
        b"rpc" => 13,
        b"refresh" => 14,
        b"sub_refresh" => 15,
        _ => 0,
    })? {
        match number {
            1 => id = fields.unsigned32()?,
            4..=15 if number <= request_number => {
                if let Some(found) = request_of(number, fields)? {
                    request = Some(found);
                    request_number = number;
                }
            }
            _ => fields.skip()?,
        }
    }
    let request = match request {
        Some(request) => request,
        None if id == 0 => Request::Pong,
        None => Request::Missing,
    };
    Ok(Command { id, request })
}

fn request_of<'a, R: ReadFields<'a>>(number: u32, fields: &mut R) -> Result<Option<Request<'a>>, CommandError> {
    Ok(match number {
        4 => fields.message(connect)?.map(Request::Connect),
        5 => fields.message(subscribe)?.map(Request::Subscribe),
        6 => fields.message(channel_only)?.map(|channel| Request::Unsubscribe { channel }),
        7 => fields.message(publish)?,
        8 => fields.message(channel_only)?.map(|channel| Request::Presence { channel }),
        9 => fields.message(channel_only)?.map(|channel| Request::PresenceStats { channel }),
        10 => fields.message(history)?.map(Request::History),
        11 => fields.message(nothing)?.map(|()| Request::Ping),
        12 => fields.message(rpc)?.map(|(_, data)| Request::Send { data }),
        13 => fields.message(rpc)?.map(|(method, data)| Request::Rpc { method, data }),
        14 => fields.message(refresh)?.map(|token| Request::Refresh { token }),
        15 => fields.message(sub_refresh)?,
        _ => {
            fields.skip()?;
            None
        }
    })
}

/// `connect`, and the first message on the unidirectional transport.
pub(super) fn connect<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<ConnectRequest<'a>, CommandError> {
    let mut request = ConnectRequest::default();
    while let Some(number) = fields.next_field(|name| match name {
        b"token" => 1,
        b"data" => 2,
        b"subs" => 3,
        b"name" => 4,
        b"version" => 5,
        b"flag" => 7,
        _ => 0,
    })? {
        match number {
            1 => request.token = fields.string()?,
            2 => request.data = fields.data()?,
            3 => fields.entries(|channel, fields| {
                if let Some(position) = fields.message(subscribe)? {
                    let SubscribeRequest { recover, offset, epoch, .. } = position;
                    request.subs.push(ConnectSubscription { channel, recover, offset, epoch });
                }
                Ok(())
            })?,
            4 => request.name = fields.string()?,
            5 => request.version = fields.string()?,
            7 => request.flag = fields.signed()?,
            _ => fields.skip()?,
        }
    }
    Ok(request)
}

fn subscribe<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<SubscribeRequest<'a>, CommandError> {
    let mut request = SubscribeRequest::default();
    while let Some(number) = fields.next_field(|name| match name {
        b"channel" => 1,
        b"token" => 2,
        b"recover" => 3,
        b"epoch" => 6,
        b"offset" => 7,
        b"data" => 8,
        b"positioned" => 9,
        b"recoverable" => 10,
        b"join_leave" => 11,
        b"delta" => 12,
        b"tf" => 13,
        b"flag" => 14,
        b"type" => 15,
        _ => 0,
    })? {
        match number {
            1 => request.channel = fields.string()?,
            2 => request.token = fields.string()?,
            3 => request.recover = fields.boolean()?,
            6 => request.epoch = fields.string()?,
            7 => request.offset = fields.unsigned()?,
            8 => request.data = fields.data()?,
            9 => request.positioned = fields.boolean()?,
            10 => request.recoverable = fields.boolean()?,
            11 => request.join_leave = fields.boolean()?,
            12 => request.delta = fields.string()?,
            13 => request.tf_present = fields.present()?,
            14 => request.flag = fields.signed()?,
            15 => request.kind = fields.signed32()?,
            _ => fields.skip()?,
        }
    }
    Ok(request)
}

/// `unsubscribe`, `presence`, `presence_stats`.
fn channel_only<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<Cow<'a, str>, CommandError> {
    let mut channel = Cow::default();
    while let Some(number) = fields.next_field(|name| u32::from(name == b"channel"))? {
        match number {
            1 => channel = fields.string()?,
            _ => fields.skip()?,
        }
    }
    Ok(channel)
}

fn publish<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<Request<'a>, CommandError> {
    let (mut channel, mut data, mut kind) = (Cow::default(), &[][..], 0);
    while let Some(number) = fields.next_field(|name| match name {
        b"channel" => 1,
        b"data" => 2,
        b"type" => 3,
        _ => 0,
    })? {
        match number {
            1 => channel = fields.string()?,
            2 => data = fields.data()?,
            3 => kind = fields.signed32()?,
            _ => fields.skip()?,
        }
    }
    Ok(if kind == 0 { Request::Publish { channel, data } } else { Request::Missing })
}

fn history<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<HistoryRequest<'a>, CommandError> {
    let mut request = HistoryRequest::default();
    while let Some(number) = fields.next_field(|name| match name {
        b"channel" => 1,
        b"limit" => 7,
        b"since" => 8,
        b"reverse" => 9,
        _ => 0,
    })? {
        match number {
            1 => request.channel = fields.string()?,
            7 => request.limit = fields.signed32()?,
            8 => request.since = fields.message(stream_position)?,
            9 => request.reverse = fields.boolean()?,
            _ => fields.skip()?,
        }
    }
    Ok(request)
}

fn stream_position<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<StreamPosition<'a>, CommandError> {
    let mut position = StreamPosition::default();
    while let Some(number) = fields.next_field(|name| match name {
        b"offset" => 1,
        b"epoch" => 2,
        _ => 0,
    })? {
        match number {
            1 => position.offset = fields.unsigned()?,
            2 => position.epoch = fields.string()?,
            _ => fields.skip()?,
        }
    }
    Ok(position)
}

fn nothing<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<(), CommandError> {
    while fields.next_field(|_| 0)?.is_some() {
        fields.skip()?;
    }
    Ok(())
}

/// `rpc`, and `send`, which has the same `data` and no method.
fn rpc<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<(Cow<'a, str>, &'a [u8]), CommandError> {
    let (mut method, mut data) = (Cow::default(), &[][..]);
    while let Some(number) = fields.next_field(|name| match name {
        b"data" => 1,
        b"method" => 2,
        _ => 0,
    })? {
        match number {
            1 => data = fields.data()?,
            2 => method = fields.string()?,
            _ => fields.skip()?,
        }
    }
    Ok((method, data))
}

fn refresh<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<Cow<'a, str>, CommandError> {
    let mut token = Cow::default();
    while let Some(number) = fields.next_field(|name| u32::from(name == b"token"))? {
        match number {
            1 => token = fields.string()?,
            _ => fields.skip()?,
        }
    }
    Ok(token)
}

fn sub_refresh<'a, R: ReadFields<'a>>(fields: &mut R) -> Result<Request<'a>, CommandError> {
    let (mut channel, mut token, mut kind) = (Cow::default(), Cow::default(), 0);
    while let Some(number) = fields.next_field(|name| match name {
        b"channel" => 1,
        b"token" => 2,
        b"type" => 3,
        _ => 0,
    })? {
        match number {
            1 => channel = fields.string()?,
            2 => token = fields.string()?,
            3 => kind = fields.signed32()?,
            _ => fields.skip()?,
        }
    }
    Ok(if kind == 0 { Request::SubRefresh { channel, token } } else { Request::Missing })
}
