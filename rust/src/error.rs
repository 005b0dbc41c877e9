//! What can be wrong with a call. Each variant is one Python class of `shardwright.errors`.

use std::fmt;

/// A call that has no meaning; the text is one sentence without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The type cannot be a shard key.
    UnsupportedKeyType(String),
    /// A range is empty, inverted, outside its keyspace, overlaps another one or leaves a gap.
    BadRange(String),
    /// An argument has no meaning.
    BadOption(String),
}

/// The result of everything that can be refused here.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnsupportedKeyType(text) | Error::BadRange(text) | Error::BadOption(text) => out.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
