//! What encoding a publication costs. It is done once per publication and wire form in use, whatever the number of subscribers.
//!
//! In: nothing. Out: nanoseconds per publication: the finished WebSocket frames, in the one allocation that all cores share.

use std::hint::black_box;

use mimalloc::MiMalloc;
use ringway_bench::micro::measure::Bench;
use ringway_bench::micro::node::json_payload;
use ringway_engine::publication::{Draft, Publication, Scratch};
use ringway_engine::variant::{Variant, VariantSet};
use ringway_wire::centrifuge::Form;

/// As in the `ringway` binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut bench = Bench::from_command_line("encode_push");
    let plain = |form| VariantSet::NONE.with(Variant::plain(form));
    let (json, protobuf) = (plain(Form::Json), plain(Form::Protobuf));
    let cases = [("json", json), ("protobuf", protobuf), ("both", json.union(protobuf)), ("no form", VariantSet::NONE)];
    for (name, variants) in cases {
        for bytes in [16, 128, 1024] {
            let payload = json_payload(bytes);
            let mut scratch = Scratch::default();
            bench.case(&format!("{name} {bytes} B"), 1, || {
                let draft = Draft { offset: 1234, variants, ..Draft::new("news:sports", black_box(&payload)) };
                let publication = Publication::encode(draft, &mut scratch);
                assert_eq!(black_box(&publication).payload().len(), bytes);
            });
        }
    }
    for (name, variant) in [
        ("json, delta and whole", Variant::plain(Form::Json).with_delta(true)),
        ("json, compressed", Variant::plain(Form::Json).with_deflate(true)),
    ] {
        let [before, payload] = ["12", "13"].map(document);
        let mut scratch = Scratch::default();
        let draft = |payload| Draft {
            offset: 1234,
            variants: VariantSet::NONE.with(variant),
            deflate_bytes_min: 256,
            ..Draft::new("news:sports", payload)
        };
        let previous = Publication::encode(draft(&before), &mut scratch);
        bench.case(&format!("{name} {} B", payload.len()), 1, || {
            let draft = Draft { previous: Some(&previous), ..draft(black_box(&payload)) };
            let publication = Publication::encode(draft, &mut scratch);
            assert!(black_box(&publication).frame(variant, true).is_some_and(|frame| frame.len() < payload.len()));
        });
    }
    bench.finish();
}

/// About 1 KiB of JSON as applications have it: keys that repeat, values that differ, one of them `score`.
fn document(score: &str) -> Vec<u8> {
    let players = (0..16).map(|i| format!("{{\"player\":\"name-{i}\",\"points\":{},\"place\":{i}}}", i * 7919 % 1000));
    let players: Vec<_> = players.collect();
    format!("{{\"match\":\"A-B\",\"score\":{score},\"players\":[{}]}}", players.join(",")).into_bytes()
}
