//! Canonical JSON and times.

use pleach_trust::{UtcTime, canonical};
use proptest::prelude::*;
use serde_json::{Value, json};

fn canon(value: &Value) -> String {
    String::from_utf8(canonical::encode(value).unwrap()).unwrap()
}

#[test]
fn canonical_json_sorts_and_escapes_as_olpc_does() {
    let value = json!({ "b": [1, -2, true, null], "a": "x\"y\\z\n\u{7f}é", "": {} });
    assert_eq!(canon(&value), "{\"\":{},\"a\":\"x\\\"y\\\\z\n\u{7f}é\",\"b\":[1,-2,true,null]}");
}

#[test]
fn refuses_json_with_two_meanings() {
    for text in ["{\"a\":1,\"a\":1}", "[1.5]", "[1e3]", "[18446744073709551616]", "{} {}", "", "[NaN]", "{\"a\":{\"b\":1,\"b\":2}}"] {
        assert!(canonical::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(canonical::encode(&json!(0.5)).is_err());
}

#[test]
fn refuses_deep_nesting() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(canonical::parse(nested(canonical::MAX_DEPTH).as_bytes()).is_ok());
    assert!(canonical::parse(nested(canonical::MAX_DEPTH + 1).as_bytes()).is_err());
    assert!(canonical::parse(nested(100_000).as_bytes()).is_err());
}

#[test]
fn times_read_as_tuf_writes_them_and_no_other_way() {
    for (text, unix_s) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T23:59:59Z", 951_868_799),
        ("2026-11-24T05:34:00Z", 1_795_498_440),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ] {
        assert_eq!(UtcTime::parse(text).unwrap().unix_s(), unix_s, "{text}");
        assert_eq!(UtcTime::from_unix_s(unix_s).to_string(), text);
    }
    for text in [
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:00:00",
        "1969-12-31T23:59:59Z",
        "2026-01-01 00:00:00Z",
        "2026-1-01T00:00:00ZZ",
        "+026-01-01T00:00:00Z",
        "2026-01-01T00:00:60Z",
    ] {
        assert!(UtcTime::parse(text).is_none(), "{text}");
    }
}

proptest! {
    #[test]
    fn times_round_trip(unix_s in 0i64..=253_402_300_799) {
        let time = UtcTime::from_unix_s(unix_s);
        prop_assert_eq!(UtcTime::parse(&time.to_string()), Some(time));
    }

    #[test]
    fn canonical_json_is_json_of_the_same_value(text in "\\PC{0,40}", number in any::<i64>()) {
        let value = json!({ "z": [text.clone(), number], text: number });
        let encoded = canonical::encode(&value).unwrap();
        prop_assert_eq!(canonical::parse(&encoded).unwrap(), value);
    }
}
