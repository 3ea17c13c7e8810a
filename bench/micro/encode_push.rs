//! What encoding a publication costs. It is done once per publication and wire form in use, whatever the number of subscribers.
//!
//! In: nothing. Out: nanoseconds per publication: the finished WebSocket frames, in the one allocation that all cores share.

use std::hint::black_box;

use mimalloc::MiMalloc;
use ringway_bench::micro::measure::Bench;
use ringway_bench::micro::node::json_payload;
use ringway_engine::publication::{FormSet, Publication, Scratch};
use ringway_wire::centrifuge::Form;

/// As in the `ringway` binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut bench = Bench::from_command_line("encode_push");
    let (json, protobuf) = (FormSet::default().with(Form::Json), FormSet::default().with(Form::Protobuf));
    let cases =
        [("json", json), ("protobuf", protobuf), ("both", json.union(protobuf)), ("no form", FormSet::default())];
    for (name, forms) in cases {
        for bytes in [16, 128, 1024] {
            let payload = json_payload(bytes);
            let mut scratch = Scratch::default();
            bench.case(&format!("{name} {bytes} B"), 1, || {
                let publication =
                    Publication::encode("news:sports", 1234, black_box(&payload), None, forms, &mut scratch);
                assert_eq!(black_box(&publication).payload().len(), bytes);
            });
        }
    }
    bench.finish();
}
