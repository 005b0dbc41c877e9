//! Keyspaces: types of keys, strategies, and the point of a key.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::hash::{hash_bytes, hash_int, PARTITION_ADD, PARTITION_SEED};

/// The type of a shard key, by its PostgreSQL name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    Int2,
    Int4,
    Int8,
    Text,
    Varchar,
    Uuid,
    Bytea,
}

impl KeyType {
    /// The smallest and the largest integer of the type; `None` for types that are no integers.
    #[inline]
    pub fn integer_bounds(self) -> Option<(i64, i64)> {
        match self {
            KeyType::Int2 => Some((i64::from(i16::MIN), i64::from(i16::MAX))),
            KeyType::Int4 => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
            KeyType::Int8 => Some((i64::MIN, i64::MAX)),
            KeyType::Text | KeyType::Varchar | KeyType::Uuid | KeyType::Bytea => None,
        }
    }

    /// The type's PostgreSQL name.
    pub fn name(self) -> &'static str {
        match self {
            KeyType::Int2 => "int2",
            KeyType::Int4 => "int4",
            KeyType::Int8 => "int8",
            KeyType::Text => "text",
            KeyType::Varchar => "varchar",
            KeyType::Uuid => "uuid",
            KeyType::Bytea => "bytea",
        }
    }
}

impl FromStr for KeyType {
    type Err = Error;

    fn from_str(name: &str) -> Result<KeyType> {
        Ok(match name {
            "int8" => KeyType::Int8,
            "int4" => KeyType::Int4,
            "int2" => KeyType::Int2,
            "text" => KeyType::Text,
            "varchar" => KeyType::Varchar,
            "uuid" => KeyType::Uuid,
            "bytea" => KeyType::Bytea,
            _ => {
                return Err(Error::UnsupportedKeyType(format!(
                    "{name:?} cannot be a shard key: the proven types are \
                     int2, int4, int8, text, varchar, uuid and bytea"
                )))
            }
        })
    }
}

/// How points are put on keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The point is the key's bucket.
    Hash(Buckets),
    /// The point is the integer key itself.
    Range,
}

impl Strategy {
    /// Check a strategy's name against its number of buckets and its key type.
    pub fn new(name: &str, buckets: Option<i64>, key_type: KeyType) -> Result<Strategy> {
        match (name, buckets) {
            ("hash", Some(count)) => Ok(Strategy::Hash(Buckets::new(count)?)),
            ("hash", None) => Err(Error::BadOption("a hash keyspace has a number of buckets".into())),
            ("range", Some(_)) => Err(Error::BadOption("a range keyspace has no buckets".into())),
            ("range", None) if key_type.integer_bounds().is_none() => Err(Error::UnsupportedKeyType(format!(
                "{} cannot be the key of a range keyspace: only int2, int4 and int8 can",
                key_type.name()
            ))),
            ("range", None) => Ok(Strategy::Range),
            _ => Err(Error::BadOption(format!("{name:?} is no strategy: hash and range are"))),
        }
    }
}

/// A number of buckets: a power of two from 2 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets(u32);

impl Buckets {
    /// Check a number of buckets.
    pub fn new(count: i64) -> Result<Buckets> {
        match u32::try_from(count) {
            Ok(n) if (2..=65536).contains(&n) && n.is_power_of_two() => Ok(Buckets(n)),
            _ => Err(Error::BadOption(format!("{count} buckets: must be a power of two from 2 to 65536"))),
        }
    }

    /// How many there are.
    #[inline]
    pub fn count(self) -> u32 {
        self.0
    }

    /// The bucket of an integer key.
    #[inline]
    pub fn of_int(self, key: i64) -> u32 {
        self.of_hash(hash_int(key, PARTITION_SEED))
    }

    /// The bucket of a key's bytes: UTF-8 of a text, the 16 bytes of a uuid in network order, a bytea as it is.
    #[inline]
    pub fn of_bytes(self, key: &[u8]) -> u32 {
        self.of_hash(hash_bytes(key, PARTITION_SEED))
    }

    /// The remainder that hash partitioning with this modulus takes; adding before or after masking is the same.
    #[inline]
    fn of_hash(self, hash: u64) -> u32 {
        (hash.wrapping_add(PARTITION_ADD) as u32) & (self.0 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proven_types() {
        assert_eq!("int8".parse(), Ok(KeyType::Int8));
        for name in ["date", "numeric", "bpchar", "timestamptz", "", "INT8"] {
            assert!(matches!(name.parse::<KeyType>(), Err(Error::UnsupportedKeyType(_))), "{name}");
        }
    }

    #[test]
    fn buckets_are_powers_of_two() {
        for good in [2, 4, 4096, 65536] {
            assert_eq!(i64::from(Buckets::new(good).unwrap().count()), good);
        }
        for bad in [i64::MIN, -2, 0, 1, 3, 4095, 131072, i64::MAX] {
            assert!(matches!(Buckets::new(bad), Err(Error::BadOption(_))), "{bad}");
        }
    }

    #[test]
    fn range_keyspaces_take_integers_only() {
        assert_eq!(Strategy::new("range", None, KeyType::Int4), Ok(Strategy::Range));
        assert!(Strategy::new("range", None, KeyType::Uuid).is_err());
        assert!(Strategy::new("range", Some(4), KeyType::Int8).is_err());
        assert!(Strategy::new("hash", None, KeyType::Int8).is_err());
        assert!(Strategy::new("list", None, KeyType::Int8).is_err());
    }
}
