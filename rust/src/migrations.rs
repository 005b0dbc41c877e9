//! The SQL under `migrations/`, compiled in: a wheel carries everything that it needs.

use crate::error::{Error, Result};

/// One numbered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    pub number: i32,
    /// The file's name without its suffix.
    pub name: &'static str,
    pub sql: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// The migrations of a catalog or of a shard, in their order.
pub fn migrations(kind: &str) -> Result<&'static [Migration]> {
    match kind {
        "catalog" => Ok(CATALOG),
        "shard" => Ok(SHARD),
        _ => Err(Error::BadOption(format!("{kind:?} has no migrations: catalog and shard have"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_from_one() {
        for kind in ["catalog", "shard"] {
            for (position, migration) in migrations(kind).unwrap().iter().enumerate() {
                assert_eq!(migration.number as usize, position + 1);
                assert!(!migration.sql.is_empty());
            }
        }
        assert!(migrations("router").is_err());
    }
}
