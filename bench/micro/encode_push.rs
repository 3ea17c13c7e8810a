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
    bench.finish();
}
