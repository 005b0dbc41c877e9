//! The hashes and buckets that a real server gave, in tests/agreement/golden_points.json.

use _core::{hash_bytes, hash_int, Buckets, KeyType};
use serde_json::Value;

const SEED: u64 = 8_816_678_312_871_386_365;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_golden_key_has_the_servers_hash_and_buckets() {
    let cases: Value = serde_json::from_str(include_str!("../../tests/agreement/golden_points.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let text = case["key"].as_str().unwrap();
        let key_type: KeyType = case["type"].as_str().unwrap().parse().unwrap();
        let bytes = match key_type {
            KeyType::Int2 | KeyType::Int4 | KeyType::Int8 => None,
            KeyType::Text | KeyType::Varchar => Some(text.as_bytes().to_vec()),
            KeyType::Uuid => Some(unhex(&text.replace('-', ""))),
            KeyType::Bytea => Some(unhex(text)),
        };
        let hash = match &bytes {
            None => hash_int(text.parse().unwrap(), SEED),
            Some(bytes) => hash_bytes(bytes, SEED),
        };
        assert_eq!((hash as i64).to_string(), case["hash"].as_str().unwrap(), "{case}");
        for (count, point) in case["points"].as_object().unwrap() {
            let buckets = Buckets::new(count.parse().unwrap()).unwrap();
            let found = match &bytes {
                None => buckets.of_int(text.parse().unwrap()),
                Some(bytes) => buckets.of_bytes(bytes),
            };
            assert_eq!(Some(u64::from(found)), point.as_u64(), "{case} with {count} buckets");
        }
    }
}
