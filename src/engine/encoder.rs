//! Encodes a publication, or a join or leave, once for each encoding that some subscriber takes.
//!
//! In: what is to be told, and a set of variants. Out: [`Frames`], finished WebSocket frames in one allocation, found by
//! encoding.
//!
//! ```text
//! [ frame ][ frame ]…[ payload, if no frame has it verbatim ][ key | start | end ]…
//! ```
//! Invariants: at most one delta is made and each push is compressed at most once, however many encodings there are;
//! what is not smaller compressed, or as a delta, is not stored a second time.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use ringway_wire::centrifuge::reply::{
    ChannelRef, ClientInfoView, PublicationView, PushData, PushShape, push_join, push_leave, push_publication,
};
use ringway_wire::deflate::Compressor;
use ringway_wire::delta::DeltaEncoder;
use ringway_wire::frame::{write_compressed_server_header, write_server_header};
use ringway_wire::ingest::PayloadKind;

use crate::presence::Member;
use crate::publication::{Draft, JoinLeave, opcode};
use crate::variant::{Variant, VariantSet};

/// Bytes of a row of the table: key, start, end.
const ROW_BYTES: usize = 9;
/// In a key beside the encoding: the frame is a delta.
const DELTA_FRAME: u8 = 1 << 7;
const _: () = assert!(Variant::COUNT <= DELTA_FRAME as usize);

/// Finished frames and where each stands. See the file's header.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: Box<[u8]>,
    /// Where the table begins.
    table: u32,
}

impl Frames {
    /// The frame of an encoding, whole or as a delta.
    pub(crate) fn find(&self, encoding: Variant, delta: bool) -> Option<Range<u32>> {
        find(&self.bytes[self.table as usize..], key(encoding, delta))
    }

    #[inline]
    pub(crate) fn at(&self, range: Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    pub(crate) fn longest(&self) -> usize {
        let table = &self.bytes[self.table as usize..];
        table.chunks_exact(ROW_BYTES).filter_map(range).map(|range| range.len()).max().unwrap_or(0)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.len()
    }
}

const fn key(encoding: Variant, delta: bool) -> u8 {
    encoding.index() as u8 | if delta { DELTA_FRAME } else { 0 }
}

fn find(table: &[u8], key: u8) -> Option<Range<u32>> {
    table.chunks_exact(ROW_BYTES).find(|row| row[0] == key).and_then(range)
}

fn range(row: &[u8]) -> Option<Range<u32>> {
    Some(u32::from_le_bytes(*row.get(1..5)?.first_chunk()?)..u32::from_le_bytes(*row.get(5..9)?.first_chunk()?))
}

/// Buffers for encoding, kept between publications.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    table: Vec<u8>,
    push: Vec<u8>,
    delta: Vec<u8>,
    compressed: Vec<u8>,
    differ: DeltaEncoder,
    compressor: Compressor,
}

impl Scratch {
    /// Encodes a publication; returns where its payload stands.
    pub(crate) fn encode(&mut self, draft: &Draft<'_>, view: &PublicationView<'_>) -> Range<u32> {
        self.begin();
        let encodings = draft.variants.encodings();
        let has_delta = encodings.has_delta() && self.make_delta(draft);
        let delta = core::mem::take(&mut self.delta);
        let mut payload = None;
        // Ascending: a compressed encoding comes behind its uncompressed twin, whose frame it may share.
        for encoding in encodings.iter() {
            let whole = if encoding.delta() { PushData::Whole } else { PushData::Plain };
            let verbatim = self.add(encoding, whole, draft, view);
            payload = payload.or(verbatim);
            if encoding.delta() && has_delta {
                self.add(encoding, PushData::Delta, draft, &PublicationView { data: &delta, ..*view });
            }
        }
        self.delta = delta;
        payload.unwrap_or_else(|| {
            let start = self.bytes.len() as u32;
            self.bytes.extend_from_slice(draft.payload);
            start..self.bytes.len() as u32
        })
    }

    /// Encodes a member's coming or going for the variants that hear of it.
    pub(crate) fn encode_join_leave(
        &mut self,
        kind: JoinLeave,
        channel: &str,
        number: i64,
        member: &Member,
        variants: VariantSet,
    ) {
        self.begin();
        let info = ClientInfoView {
            user: &member.user,
            client: &member.client,
            conn_info: &member.conn_info,
            chan_info: &member.chan_info,
        };
        for encoding in variants.event_encodings().iter() {
            let shape = shape(encoding, channel, number);
            self.push.clear();
            match kind {
                JoinLeave::Join => push_join(&shape, &mut self.push, &info),
                JoinLeave::Leave => push_leave(&shape, &mut self.push, &info),
            }
            let start = self.bytes.len() as u32;
            self.write_frame(encoding);
            self.note(key(encoding, false), start..self.bytes.len() as u32);
        }
    }

    /// What was encoded, in an allocation of its own.
    pub(crate) fn finish(&mut self) -> Frames {
        let table = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&self.table);
        Frames { bytes: self.bytes.as_slice().into(), table }
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.table.clear();
    }

    /// Writes the difference to the publication before into `delta`. False: there is none, or it is not worth it.
    fn make_delta(&mut self, draft: &Draft<'_>) -> bool {
        let Some(previous) = draft.previous else { return false };
        self.delta.clear();
        // Text stays text, so that JSON and Protobuf subscribers share the difference.
        self.differ.create(previous.payload(), draft.payload, draft.kind == PayloadKind::Json, &mut self.delta)
    }

    /// Encodes one push, or finds that another encoding's frame serves. Returns where the payload stands, if it does.
    fn add(
        &mut self,
        encoding: Variant,
        data: PushData,
        draft: &Draft<'_>,
        view: &PublicationView<'_>,
    ) -> Option<Range<u32>> {
        let delta = data == PushData::Delta;
        let own = key(encoding, delta);
        let twin = if encoding.deflate() { find(&self.table, key(encoding.with_deflate(false), delta)) } else { None };
        let bytes_min = draft.deflate_bytes_min as usize;
        let compress = encoding.deflate() && bytes_min > 0 && view.data.len() >= bytes_min;
        if let (Some(twin), false) = (&twin, compress) {
            self.note(own, twin.clone());
            return None;
        }
        self.push.clear();
        let shape = shape(encoding, draft.channel, draft.number);
        let verbatim = push_publication(&shape, data, &mut self.push, view);
        let start = self.bytes.len() as u32;
        if compress && self.compress() {
            write_compressed_server_header(&mut self.bytes, opcode(encoding.form()), self.compressed.len());
            self.bytes.extend_from_slice(&self.compressed);
            self.note(own, start..self.bytes.len() as u32);
            return None;
        }
        if let Some(twin) = twin {
            self.note(own, twin);
            return None;
        }
        let body = self.write_frame(encoding);
        self.note(own, start..self.bytes.len() as u32);
        let verbatim = verbatim.filter(|_| !delta)?;
        Some(body + verbatim.start as u32..body + verbatim.end as u32)
    }

    /// Compresses the push at hand. False: it is not smaller.
    fn compress(&mut self) -> bool {
        self.compressed.clear();
        self.compressor.compress(&self.push, &mut self.compressed);
        self.compressed.len() < self.push.len()
    }

    /// Appends the push at hand as a frame; returns where its body begins.
    fn write_frame(&mut self, encoding: Variant) -> u32 {
        write_server_header(&mut self.bytes, opcode(encoding.form()), self.push.len());
        let body = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&self.push);
        body
    }

    fn note(&mut self, key: u8, range: Range<u32>) {
        let mut row = [key; ROW_BYTES];
        row[1..5].copy_from_slice(&range.start.to_le_bytes());
        row[5..].copy_from_slice(&range.end.to_le_bytes());
        self.table.extend_from_slice(&row);
    }
}

fn shape(encoding: Variant, channel: &str, number: i64) -> PushShape<'_> {
    let channel = if encoding.compact() { ChannelRef::Number(number) } else { ChannelRef::Name(channel) };
    PushShape { form: encoding.form(), bare: encoding.bare(), channel }
}
