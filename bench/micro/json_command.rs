//! What a client command costs to decode, in JSON and in Protobuf, and what checking a payload costs.
//!
//! In: nothing. Out: nanoseconds per command. Decoding borrows from the message; nothing is copied.

use std::hint::black_box;

use ringway_bench::micro::measure::Bench;
use ringway_bench::micro::node::json_payload;
use ringway_wire::centrifuge::Form;
use ringway_wire::centrifuge::command::Commands;
use ringway_wire::centrifuge::json;

fn main() {
    let mut bench = Bench::from_command_line("json_command");
    let publish = publish_json(128);
    let subscribe =
        br#"{"id":2,"subscribe":{"channel":"news:sports","recover":true,"epoch":"1a2b3c4d.7","offset":1234}}"#;
    let connect = br#"{"id":1,"connect":{"token":"","name":"js","version":"5.3.4"}}"#;
    decode(&mut bench, "json pong {}", Form::Json, 1, b"{}");
    decode(&mut bench, "json connect", Form::Json, 1, connect);
    decode(&mut bench, "json subscribe with recover", Form::Json, 1, subscribe);
    decode(&mut bench, "json publish 128 B", Form::Json, 1, &publish);
    let batch = [publish.as_slice(); 16].join(&b'\n');
    decode(&mut bench, "json publish 128 B, 16 in a message", Form::Json, 16, &batch);
    decode(&mut bench, "protobuf publish 128 B", Form::Protobuf, 1, &publish_protobuf(128));
    for bytes in [128, 1024] {
        let flat = json_payload(bytes);
        bench.case(&format!("json payload check {bytes} B, one string"), 1, || check(&flat));
        let nested = nested_json(bytes);
        bench.case(&format!("json payload check {bytes} B, object"), 1, || check(&nested));
    }
    bench.finish();
}

fn decode(bench: &mut Bench, case: &str, form: Form, commands: usize, message: &[u8]) {
    bench.case(case, commands as u64, || {
        let decoded = Commands::new(form, black_box(message)).filter(|command| command.is_ok()).count();
        assert_eq!(decoded, commands);
    });
}

fn check(text: &[u8]) {
    assert!(json::check(black_box(text)).is_ok());
}

fn publish_json(bytes: usize) -> Vec<u8> {
    let mut message = br#"{"id":3,"publish":{"channel":"news:sports","data":"#.to_vec();
    message.extend_from_slice(&json_payload(bytes));
    message.extend_from_slice(b"}}");
    message
}

/// Length, id = 3, publish = { channel, data }; every length but the payload's fits one byte.
fn publish_protobuf(bytes: u8) -> Vec<u8> {
    let channel = b"news:sports";
    let two_bytes = |len: u8| [len | 0x80, 1];
    assert!((128..228).contains(&bytes), "its length takes two bytes, and so do those around it");
    let body = 2 + channel.len() as u8 + 3 + bytes;
    let mut message = two_bytes((body + 5) & 0x7F).to_vec();
    message.extend_from_slice(&[0x08, 3, 0x3A]);
    message.extend_from_slice(&two_bytes(body & 0x7F));
    message.extend_from_slice(&[0x0A, channel.len() as u8]);
    message.extend_from_slice(channel);
    message.push(0x12);
    message.extend_from_slice(&two_bytes(bytes & 0x7F));
    message.extend_from_slice(&json_payload(usize::from(bytes)));
    message
}

/// Numbers, strings and nesting, as data usually comes.
fn nested_json(bytes: usize) -> Vec<u8> {
    let mut text = br#"{"rows":["#.to_vec();
    while text.len() + 40 < bytes {
        text.extend_from_slice(br#"{"id":123,"name":"abc","ok":true},"#);
    }
    text.extend_from_slice(br#"0],"pad":""#);
    text.resize(text.len().max(bytes - 2), b'x');
    text.extend_from_slice(b"\"}");
    text
}
