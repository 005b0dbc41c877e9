//! The routing core: the point of a key, the range of a point, placement, fingerprints and the embedded SQL.
//!
//! Nothing here does I/O. `py` is the only module that knows Python; the rest is tested without it.

mod error;
mod hash;
mod keyspace;
mod migrations;
mod placement;
#[cfg(feature = "python")]
mod py;
mod shard_map;

pub use error::{Error, Result};
pub use hash::{hash_bytes, hash_int};
pub use keyspace::{Buckets, KeyType, Strategy};
pub use migrations::{migrations, Migration};
pub use placement::{place, Move, Piece};
pub use shard_map::{fingerprint, Located, RangeTable, TableRange};
