//! JSON texts: the check against `serde_json`, strings both ways, newlines.
//!
//! In: texts by hand and random ones. Out: disagreements as panics.
//!
//! `serde_json::value::RawValue` is the judge: it checks the grammar only, and so, as this codec, accepts numbers of
//! any size and lone surrogate escapes. It has no depth limit; [`DEPTH_MAX`] is tested alone.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

use super::decode_one;
use crate::centrifuge::Form;
use crate::centrifuge::command::Request;
use crate::centrifuge::json::{DEPTH_MAX, JsonError, JsonErrorKind, check, remove_newlines, write_string};

/// Random JSON values, some deep, with strings of all kinds.
pub(super) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Exact in few digits: serde_json is allowed to read others one bit off.
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 64.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Pieces of JSON put together without sense: nearly always invalid, near the grammar.
fn shards() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(","),
        Just(":"),
        Just("\""),
        Just("\\"),
        Just(" "),
        Just("\n"),
        Just("\r"),
        Just("\t"),
        Just("0"),
        Just("1"),
        Just("-"),
        Just("."),
        Just("e"),
        Just("E+"),
        Just("true"),
        Just("false"),
        Just("null"),
        Just("nul"),
        Just("\"a\""),
        Just("\"k\":"),
        Just("\\u12"),
        Just("\"\\u00e9\""),
        Just("\u{1}"),
        Just("é"),
        Just("1.5e-3"),
        Just("-0"),
        Just("[]"),
        Just("{}"),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn judge(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

#[test]
fn check_accepts_the_grammar_and_nothing_else() {
    let accepted = [
        "0",
        "-0",
        "10",
        "1.5",
        "1e5",
        "1E+5",
        "1e-5",
        "-0.0e0",
        "123456789012345678901234567890",
        "1e999",
        "true",
        "false",
        "null",
        "\"\"",
        "\"a\"",
        r#""\"\\\/\b\f\n\r\t\u00e9""#,
        r#""\ud800""#,
        "[]",
        "{}",
        "[ ]",
        "{ }",
        "[1,2]",
        r#"{"a":1,"b":[{}]}"#,
        " 1 ",
        "\t[\r\n1 ,\n2 ]\n",
        "\"\u{7f}é\u{10FFFF}\"",
    ];
    for text in accepted {
        assert!(check(text.as_bytes()).is_ok(), "{text:?}");
        assert!(judge(text), "{text:?}");
    }
    let refused = [
        "",
        " ",
        "01",
        "-",
        "-a",
        "+1",
        ".5",
        "1.",
        "1.e1",
        "1e",
        "1e+",
        "0x1",
        "1 2",
        "tru",
        "truee",
        "nul",
        "True",
        "NaN",
        "'a'",
        "\"",
        "\"a",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u123g\"",
        "\"\n\"",
        "\"\u{0}\"",
        "\"\u{1f}\"",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{",
        "}",
        "{a:1}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1",
        "{\"a\":1]",
        "{,}",
        "{1:2}",
        "[]]",
        "{}{}",
        "//",
        "\u{feff}1",
        "1\u{b}",
        "\u{c}1",
        "1\u{a0}",
    ];
    for text in refused {
        assert!(check(text.as_bytes()).is_err(), "{text:?}");
        assert!(!judge(text), "{text:?}");
    }
}

#[test]
fn check_tells_what_is_wrong_and_where() {
    let error = |text: &str| check(text.as_bytes()).unwrap_err();
    assert_eq!(error("[1,"), JsonError { kind: JsonErrorKind::End, at: 3 });
    assert_eq!(error("[1 2]"), JsonError { kind: JsonErrorKind::Unexpected, at: 3 });
    assert_eq!(error("[\"a\\x\"]"), JsonError { kind: JsonErrorKind::Escape, at: 3 });
    assert_eq!(error("\"ab\n\""), JsonError { kind: JsonErrorKind::Control, at: 3 });
    assert_eq!(error("1.x"), JsonError { kind: JsonErrorKind::Number, at: 2 });
    assert_eq!(error("[1 2]").to_string(), "unexpected byte at byte 3");
}

#[test]
fn check_limits_depth() {
    let depth = DEPTH_MAX as usize;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let inner = if open == "[" { "" } else { "1" };
        let nested = |depth: usize| format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
        assert_eq!(check(nested(depth).as_bytes()), Ok(false));
        assert_eq!(check(nested(depth + 1).as_bytes()).unwrap_err().kind, JsonErrorKind::TooDeep);
        assert_eq!(check(open.repeat(100_000).as_bytes()).unwrap_err().kind, JsonErrorKind::TooDeep);
    }
    // Containers beside each other are not deep.
    assert_eq!(check(format!("[{}0]", "[{}],{\"a\":[]},".repeat(1_000)).as_bytes()), Ok(false));
}

#[test]
fn check_sees_raw_newlines_between_tokens_only() {
    for (text, newlines) in
        [("[1,2]", false), ("[1,\n2]", true), ("[1]\r", true), ("\n1", true), (r#"["\n\r"]"#, false)]
    {
        assert_eq!(check(text.as_bytes()), Ok(newlines), "{text:?}");
    }
}

#[test]
fn lone_surrogates_become_replacement_characters() {
    for (escaped, plain) in [
        (r"\ud83d\ude00", "😀"),
        (r"\uD83D\uDE00", "😀"),
        (r"a\ud83db", "a\u{fffd}b"),
        (r"\ude00", "\u{fffd}"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ud83d\n", "\u{fffd}\n"),
        (r"\ud83d", "\u{fffd}"),
        (r"\u0000\u001f\/\b\f", "\u{0}\u{1f}/\u{8}\u{c}"),
    ] {
        let message = format!(r#"{{"rpc":{{"method":"{escaped}"}},"id":1}}"#);
        let Request::Rpc { method, .. } = decode_one(Form::Json, message.as_bytes()).request else { panic!() };
        assert_eq!(method, plain, "{escaped}");
    }
}

proptest! {
    #[test]
    fn check_accepts_every_value(value in value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        prop_assert_eq!(check(text.as_bytes()), Ok(text.contains('\n')));
    }

    #[test]
    fn check_agrees_on_broken_texts(
        value in value(),
        at in any::<prop::sample::Index>(),
        edit in 0..3,
        with in prop::sample::select("{}[],:\"\\ \n\t0123.eE+-truefalsn\u{1}é".chars().collect::<Vec<_>>()),
    ) {
        let mut text: Vec<char> = serde_json::to_string(&value).unwrap().chars().collect();
        let at = at.index(text.len());
        match edit {
            0 => text[at] = with,
            1 => { text.remove(at); }
            _ => text.insert(at, with),
        }
        let text: String = text.into_iter().collect();
        prop_assert_eq!(check(text.as_bytes()).is_ok(), judge(&text), "{}", text);
    }

    #[test]
    fn check_agrees_on_shards(text in shards()) {
        prop_assert_eq!(check(text.as_bytes()).is_ok(), judge(&text), "{}", text);
    }

    #[test]
    fn check_never_panics(bytes in any::<Vec<u8>>()) {
        let _ = check(&bytes);
    }

    #[test]
    fn newlines_go_and_the_value_stays(value in value()) {
        let mut text = serde_json::to_vec_pretty(&value).unwrap();
        check(&text).unwrap();
        remove_newlines(&mut text);
        prop_assert_eq!(check(&text), Ok(false));
        prop_assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn strings_are_written_as_json(text in any::<String>(), low in "[\u{0}-\u{7f}]{0,40}") {
        for text in [text, low] {
            let mut out = b"x".to_vec();
            write_string(&mut out, &text);
            prop_assert_eq!(out[0], b'x');
            prop_assert!(!out.contains(&b'\n'));
            prop_assert_eq!(check(&out[1..]), Ok(false));
            prop_assert_eq!(serde_json::from_slice::<String>(&out[1..]).unwrap(), text);
        }
    }

    #[test]
    fn strings_are_read_as_serde_reads_them(
        pieces in proptest::collection::vec(
            prop_oneof![
                any::<char>().prop_filter("plain", |c| *c >= ' ' && *c != '"' && *c != '\\').prop_map(String::from),
                any::<char>().prop_map(|c| {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }),
                prop::sample::select(&["\\n", "\\\"", "\\\\", "\\/", "\\b", "\\f", "\\r", "\\t"][..])
                    .prop_map(ToOwned::to_owned),
                "[a-z]{0,12}",
            ],
            0..12,
        ),
    ) {
        let text = format!("\"{}\"", pieces.concat());
        let expected: String = serde_json::from_str(&text).unwrap();
        let message = format!(r#"{{"rpc":{{"method":{text},"data":{text}}},"id":1}}"#);
        let Request::Rpc { method, data } = decode_one(Form::Json, message.as_bytes()).request else { panic!() };
        prop_assert_eq!(method, expected);
        prop_assert_eq!(data, text.as_bytes());
    }
}
