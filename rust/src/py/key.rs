//! Python objects as keys: what is accepted, one by one and in batches.

use std::borrow::Cow;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyInt, PyList, PyMemoryView, PyString, PyType};

use super::{BadKey, BadOption};
use crate::keyspace::{Buckets, KeyType};
use crate::shard_map;

/// A key as the hash functions want it.
pub(super) enum Key<'a> {
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    Uuid([u8; 16]),
}

impl Key<'_> {
    /// Check a Python object against the type of a keyspace's keys, and read it.
    #[inline]
    pub(super) fn read<'a>(key: &'a Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Key<'a>> {
        match key_type {
            KeyType::Int8 | KeyType::Int4 | KeyType::Int2 => Ok(Key::Int(read_int(key, key_type)?)),
            KeyType::Text | KeyType::Varchar => Ok(Key::Bytes(Cow::Borrowed(read_text(key, key_type)?.as_bytes()))),
            KeyType::Uuid => Ok(Key::Uuid(read_uuid(key)?)),
            KeyType::Bytea => Ok(Key::Bytes(read_bytes(key)?)),
        }
    }

    #[inline]
    pub(super) fn bucket(&self, buckets: Buckets) -> u32 {
        match self {
            Key::Int(key) => buckets.of_int(*key),
            Key::Bytes(key) => buckets.of_bytes(key),
            Key::Uuid(key) => buckets.of_bytes(key),
        }
    }

    #[inline]
    pub(super) fn locate(&self, table: &shard_map::RangeTable) -> shard_map::Located {
        match self {
            Key::Int(key) => table.locate_int(*key),
            Key::Bytes(key) => table.locate_bytes(key),
            Key::Uuid(key) => table.locate_bytes(key),
        }
    }
}

#[inline]
fn read_int(key: &Bound<'_, PyAny>, key_type: KeyType) -> PyResult<i64> {
    // bool is a subclass of int in Python and no integer in PostgreSQL.
    if !key.is_exact_instance_of::<PyInt>() && key.is_instance_of::<PyBool>() {
        return Err(wrong_type(key, key_type));
    }
    // Takes whatever has __index__: int, its subclasses, numpy's integers; neither float nor str has it.
    let Ok(number) = key.extract::<i64>() else {
        return Err(unfit_int(key, key_type));
    };
    match key_type.integer_bounds() {
        Some((low, high)) if (low..=high).contains(&number) => Ok(number),
        _ => Err(unfit_int(key, key_type)),
    }
}

#[cold]
fn unfit_int(key: &Bound<'_, PyAny>, key_type: KeyType) -> PyErr {
    let is_integer = key.is_instance_of::<PyInt>() || key.extract::<i64>().is_ok();
    match key_type.integer_bounds() {
        Some((low, high)) if is_integer => {
            BadKey::new_err(format!("the key is outside {}: {low} to {high}", key_type.name()))
        }
        _ => wrong_type(key, key_type),
    }
}

#[cold]
fn wrong_type(key: &Bound<'_, PyAny>, key_type: KeyType) -> PyErr {
    if key.is_none() {
        return BadKey::new_err("the key is None: a shard key is never NULL");
    }
    let expected = match key_type {
        KeyType::Int2 | KeyType::Int4 | KeyType::Int8 => "int",
        KeyType::Text | KeyType::Varchar => "str",
        KeyType::Uuid => "uuid.UUID or its text",
        KeyType::Bytea => "bytes",
    };
    let found = key.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    BadKey::new_err(format!("the key is of type {found}: {} needs {expected}", key_type.name()))
}

#[inline]
fn read_text<'a>(key: &'a Bound<'_, PyAny>, key_type: KeyType) -> PyResult<&'a str> {
    let Ok(text) = key.cast::<PyString>() else {
        return Err(wrong_type(key, key_type));
    };
    let Ok(text) = text.to_str() else {
        return Err(BadKey::new_err("the key holds a lone surrogate, which no UTF-8 text can hold"));
    };
    if text.as_bytes().contains(&0) {
        return Err(BadKey::new_err("the key holds a NUL character, which no PostgreSQL text can hold"));
    }
    Ok(text)
}

fn read_bytes<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(Cow::Borrowed(bytes.as_bytes()));
    }
    if key.is_instance_of::<PyByteArray>() || key.is_instance_of::<PyMemoryView>() {
        if let Ok(buffer) = PyBuffer::<u8>::get(key) {
            return Ok(Cow::Owned(buffer.to_vec(key.py())?));
        }
    }
    Err(wrong_type(key, KeyType::Bytea))
}

pub(super) fn uuid_class<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "uuid", "UUID")
}

#[inline]
fn read_uuid(key: &Bound<'_, PyAny>) -> PyResult<[u8; 16]> {
    let py = key.py();
    if key.is_instance(uuid_class(py)?)? {
        let number: u128 = key.getattr(pyo3::intern!(py, "int"))?.extract()?;
        return Ok(number.to_be_bytes());
    }
    // SQLAlchemy's Uuid(as_uuid=False) has its values as text; upper and lower case are one uuid.
    let Ok(text) = key.cast::<PyString>() else {
        return Err(wrong_type(key, KeyType::Uuid));
    };
    text.to_str()
        .ok()
        .and_then(parse_uuid)
        .ok_or_else(|| BadKey::new_err("the key is no uuid: expected 32 hexadecimal digits, or 8-4-4-4-12 of them"))
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Cow<'_, str> = match text.len() {
        32 => Cow::Borrowed(text),
        36 if [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-') => Cow::Owned(text.replace('-', "")),
        _ => return None,
    };
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// Many keys, copied out of Python so that they can be hashed while other threads run.
pub(super) enum Keys {
    Ints(Vec<i64>),
    /// All bytes in one block, and where each key ends.
    Bytes {
        block: Vec<u8>,
        ends: Vec<usize>,
    },
}

impl Keys {
    pub(super) fn read(keys: &Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Keys> {
        if keys.is_instance_of::<PyString>() || keys.is_instance_of::<PyBytes>() || keys.is_instance_of::<PyByteArray>()
        {
            return Err(BadOption::new_err("keys must be a list, an array or an iterable of keys, not one key"));
        }
        if key_type.integer_bounds().is_some() {
            if let Some(ints) = read_buffer(keys, key_type)? {
                return Ok(Keys::Ints(ints));
            }
            let mut ints = Vec::with_capacity(keys.len().unwrap_or(0));
            each(keys, |key| {
                ints.push(read_int(key, key_type)?);
                Ok(())
            })?;
            return Ok(Keys::Ints(ints));
        }
        let mut block = Vec::new();
        let mut ends = Vec::with_capacity(keys.len().unwrap_or(0));
        each(keys, |key| {
            match Key::read(key, key_type)? {
                Key::Bytes(bytes) => block.extend_from_slice(&bytes),
                Key::Uuid(bytes) => block.extend_from_slice(&bytes),
                Key::Int(_) => unreachable!("integer types were read above"),
            }
            ends.push(block.len());
            Ok(())
        })?;
        Ok(Keys::Bytes { block, ends })
    }

    /// Apply one of two functions to every key.
    pub(super) fn map<T>(&self, of_int: impl Fn(i64) -> T, of_bytes: impl Fn(&[u8]) -> T) -> Vec<T> {
        match self {
            Keys::Ints(ints) => ints.iter().map(|key| of_int(*key)).collect(),
            Keys::Bytes { block, ends } => {
                let mut from = 0;
                ends.iter().map(|end| of_bytes(&block[std::mem::replace(&mut from, *end)..*end])).collect()
            }
        }
    }
}

/// Call a function with every key; an error says which key it was.
fn each(keys: &Bound<'_, PyAny>, mut read: impl FnMut(&Bound<'_, PyAny>) -> PyResult<()>) -> PyResult<()> {
    let mut number = 0_usize;
    let mut numbered = |key: &Bound<'_, PyAny>| {
        read(key).map_err(|error| {
            let py = key.py();
            if error.is_instance_of::<BadKey>(py) {
                BadKey::new_err(format!("key number {number}: {}", error.value(py)))
            } else {
                error
            }
        })?;
        number += 1;
        PyResult::Ok(())
    };
    if let Ok(list) = keys.cast_exact::<PyList>() {
        for key in list.iter() {
            numbered(&key)?;
        }
        return Ok(());
    }
    let iterator =
        keys.try_iter().map_err(|_| BadOption::new_err("keys must be a list, an array or an iterable of keys"))?;
    for key in iterator {
        numbered(&key?)?;
    }
    Ok(())
}

/// The integers of an object with the buffer protocol (array.array, numpy, memoryview); None if it is no such object.
fn read_buffer(keys: &Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Option<Vec<i64>>> {
    if keys.is_exact_instance_of::<PyList>() {
        return Ok(None);
    }
    fn of<T: Element + TryInto<i64>>(keys: &Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Option<Vec<i64>>> {
        let Ok(buffer) = PyBuffer::<T>::get(keys) else {
            return Ok(None);
        };
        // pyo3 takes big-endian buffers ('>i8') for native ones on little-endian machines; iterating reads them right.
        if cfg!(target_endian = "little") && matches!(buffer.format().to_bytes()[0], b'>' | b'!') {
            return Ok(None);
        }
        if buffer.dimensions() != 1 {
            return Err(BadOption::new_err("an array of keys has one dimension"));
        }
        let bounds = key_type.integer_bounds().unwrap_or((0, 0));
        let mut ints = Vec::with_capacity(buffer.item_count());
        for (number, value) in buffer.to_vec(keys.py())?.into_iter().enumerate() {
            match value.try_into() {
                Ok(int) if (bounds.0..=bounds.1).contains(&int) => ints.push(int),
                _ => {
                    return Err(BadKey::new_err(format!(
                        "key number {number}: the key is outside {}: {} to {}",
                        key_type.name(),
                        bounds.0,
                        bounds.1
                    )))
                }
            }
        }
        Ok(Some(ints))
    }
    for read in [of::<i64>, of::<i32>, of::<i16>, of::<i8>, of::<u64>, of::<u32>, of::<u16>, of::<u8>] {
        if let Some(ints) = read(keys, key_type)? {
            return Ok(Some(ints));
        }
    }
    Ok(None)
}
