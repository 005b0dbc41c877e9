//! The Python module `shardwright._core`. Only conversions and the release of the GIL live here.

use std::borrow::Cow;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyInt, PyList, PyMemoryView, PyString, PyType};

use crate::error::Error;
use crate::keyspace::{Buckets, KeyType, Strategy};
use crate::shard_map::TableRange;
use crate::{migrations as sql, placement, shard_map};

import_exception!(shardwright.errors, BadKey);
import_exception!(shardwright.errors, BadOption);
import_exception!(shardwright.errors, BadRange);
import_exception!(shardwright.errors, UnsupportedKeyType);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::BadKey(text) => BadKey::new_err(text),
            Error::UnsupportedKeyType(text) => UnsupportedKeyType::new_err(text),
            Error::BadRange(text) => BadRange::new_err(text),
            Error::BadOption(text) => BadOption::new_err(text),
        }
    }
}

// ---------------------------------------------------------------- one key

/// A key as the hash functions want it.
enum Key<'a> {
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    Uuid([u8; 16]),
}

impl Key<'_> {
    /// Check a Python object against the type of a keyspace's keys, and read it.
    #[inline]
    fn read<'a>(key: &'a Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Key<'a>> {
        match key_type {
            KeyType::Int8 | KeyType::Int4 | KeyType::Int2 => Ok(Key::Int(read_int(key, key_type)?)),
            KeyType::Text | KeyType::Varchar => Ok(Key::Bytes(Cow::Borrowed(read_text(key, key_type)?.as_bytes()))),
            KeyType::Uuid => Ok(Key::Uuid(read_uuid(key)?)),
            KeyType::Bytea => Ok(Key::Bytes(read_bytes(key)?)),
        }
    }

    #[inline]
    fn bucket(&self, buckets: Buckets) -> u32 {
        match self {
            Key::Int(key) => buckets.of_int(*key),
            Key::Bytes(key) => buckets.of_bytes(key),
            Key::Uuid(key) => buckets.of_bytes(key),
        }
    }

    #[inline]
    fn locate(&self, table: &shard_map::RangeTable) -> shard_map::Located {
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

fn uuid_class<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
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

/// Check a key against a type, without converting one type to another.
///
/// Returns the key in the one form that its type has: int, str, uuid.UUID or bytes.
#[pyfunction]
#[pyo3(signature = (key, key_type, /))]
fn check_key<'py>(key: &Bound<'py, PyAny>, key_type: &str) -> PyResult<Bound<'py, PyAny>> {
    let py = key.py();
    match Key::read(key, key_type.parse()?)? {
        Key::Int(_) | Key::Bytes(Cow::Borrowed(_))
            if key.is_exact_instance_of::<PyInt>()
                || key.is_exact_instance_of::<PyString>()
                || key.is_exact_instance_of::<PyBytes>() =>
        {
            Ok(key.clone())
        }
        Key::Int(number) => Ok(number.into_pyobject(py)?.into_any()),
        Key::Bytes(_) if key.is_instance_of::<PyString>() => Ok(PyString::new(py, key.extract()?).into_any()),
        Key::Bytes(bytes) => Ok(PyBytes::new(py, &bytes).into_any()),
        Key::Uuid(_) if key.is_instance(uuid_class(py)?)? => Ok(key.clone()),
        Key::Uuid(_) => uuid_class(py)?.call1((key,)),
    }
}

// ---------------------------------------------------------------- many keys

/// Many keys, copied out of Python so that they can be hashed while other threads run.
enum Keys {
    Ints(Vec<i64>),
    /// All bytes in one block, and where each key ends.
    Bytes {
        block: Vec<u8>,
        ends: Vec<usize>,
    },
}

impl Keys {
    fn read(keys: &Bound<'_, PyAny>, key_type: KeyType) -> PyResult<Keys> {
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
                Key::Int(number) => block.extend_from_slice(&number.to_be_bytes()),
            }
            ends.push(block.len());
            Ok(())
        })?;
        Ok(Keys::Bytes { block, ends })
    }

    /// Apply one of two functions to every key.
    fn map<T>(&self, of_int: impl Fn(i64) -> T, of_bytes: impl Fn(&[u8]) -> T) -> Vec<T> {
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

fn read_buckets(buckets: &Bound<'_, PyAny>) -> PyResult<Buckets> {
    match buckets.extract::<i64>() {
        Ok(count) => Ok(Buckets::new(count)?),
        Err(_) => Err(BadOption::new_err("buckets must be a power of two from 2 to 65536")),
    }
}

/// A list of small numbers, each made once and shared: making a Python int costs more than hashing a key.
fn list_of_small<'py>(py: Python<'py>, numbers: &[u32], below: usize) -> PyResult<Bound<'py, PyList>> {
    if numbers.len() < below {
        return PyList::new(py, numbers);
    }
    let ints = (0..below).map(|number| Ok(number.into_pyobject(py)?)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, numbers.iter().map(|number| ints[*number as usize].clone()))
}

/// The bucket of a key: the remainder that PostgreSQL's own hash partitioning with this modulus takes.
#[pyfunction]
#[pyo3(signature = (key, key_type, buckets, /))]
fn point(key: &Bound<'_, PyAny>, key_type: &str, buckets: &Bound<'_, PyAny>) -> PyResult<u32> {
    let key_type = key_type.parse()?;
    let buckets = read_buckets(buckets)?;
    Ok(Key::read(key, key_type)?.bucket(buckets))
}

/// The buckets of many keys: a list, a buffer of integers, or any iterable.
#[pyfunction]
#[pyo3(signature = (keys, key_type, buckets, /))]
fn points<'py>(keys: &Bound<'py, PyAny>, key_type: &str, buckets: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    let py = keys.py();
    let buckets = read_buckets(buckets)?;
    let keys = Keys::read(keys, key_type.parse()?)?;
    let found = py.detach(|| keys.map(|key| buckets.of_int(key), |key| buckets.of_bytes(key)));
    list_of_small(py, &found, buckets.count() as usize)
}

// ---------------------------------------------------------------- ranges

/// All ranges of one keyspace, ready for look-up. Immutable; safe to share between threads.
#[pyclass(frozen, module = "shardwright._core")]
struct RangeTable {
    table: shard_map::RangeTable,
    ids: Vec<Py<PyInt>>,
}

#[pymethods]
impl RangeTable {
    #[new]
    #[pyo3(signature = (strategy, key_type, buckets, ranges, /))]
    fn new(
        py: Python<'_>,
        strategy: &str,
        key_type: &str,
        buckets: Option<i64>,
        ranges: Vec<(i64, Option<i64>, Option<i64>)>,
    ) -> PyResult<RangeTable> {
        let key_type = key_type.parse()?;
        let strategy = Strategy::new(strategy, buckets, key_type)?;
        let ranges = ranges.into_iter().map(|(id, lo, hi)| TableRange { id, lo, hi }).collect();
        let table = shard_map::RangeTable::new(strategy, key_type, ranges)?;
        let ids = table.ids().iter().map(|id| Ok(id.into_pyobject(py)?.unbind())).collect::<PyResult<_>>()?;
        Ok(RangeTable { table, ids })
    }

    /// The ids of the ranges in the order of their points.
    #[getter]
    fn ids(&self, py: Python<'_>) -> Vec<Py<PyInt>> {
        self.ids.iter().map(|id| id.clone_ref(py)).collect()
    }

    /// A key's point, and the position of its range in `ids`.
    #[pyo3(signature = (key, /))]
    fn locate(&self, key: &Bound<'_, PyAny>) -> PyResult<(i64, usize)> {
        let found = Key::read(key, self.table.key_type())?.locate(&self.table);
        Ok((found.point, found.position))
    }

    /// A key's point.
    #[pyo3(signature = (key, /))]
    fn point(&self, key: &Bound<'_, PyAny>) -> PyResult<i64> {
        Ok(Key::read(key, self.table.key_type())?.locate(&self.table).point)
    }

    /// The id of a key's range.
    #[pyo3(signature = (key, /))]
    fn range_id<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyInt>> {
        let found = Key::read(key, self.table.key_type())?.locate(&self.table);
        Ok(self.ids[found.position].bind(key.py()).clone())
    }

    /// The position in `ids` of the range that holds a point.
    #[pyo3(signature = (point, /))]
    fn locate_point(&self, point: &Bound<'_, PyAny>) -> PyResult<usize> {
        let Ok(point) = point.extract::<i64>() else {
            return Err(BadRange::new_err("a point is an integer from -2**63 to 2**63 - 1"));
        };
        Ok(self.table.locate_point(point)?)
    }

    /// The points of many keys: a list, a buffer of integers, or any iterable.
    #[pyo3(signature = (keys, /))]
    fn points<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let py = keys.py();
        let keys = Keys::read(keys, self.table.key_type())?;
        let table = &self.table;
        let found = py.detach(|| keys.map(|key| table.locate_int(key).point, |key| table.locate_bytes(key).point));
        PyList::new(py, found)
    }

    /// The ids of the ranges of many keys: a list, a buffer of integers, or any iterable.
    #[pyo3(signature = (keys, /))]
    fn range_ids<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let py = keys.py();
        let keys = Keys::read(keys, self.table.key_type())?;
        let table = &self.table;
        let found =
            py.detach(|| keys.map(|key| table.locate_int(key).position, |key| table.locate_bytes(key).position));
        PyList::new(py, found.into_iter().map(|position| self.ids[position].bind(py)))
    }

    fn __len__(&self) -> usize {
        self.ids.len()
    }

    fn __repr__(&self) -> String {
        format!("<RangeTable of {} ranges>", self.ids.len())
    }
}

// ---------------------------------------------------------------- placement, fingerprint, migrations

type PyMove = (String, String, Vec<(u32, u32)>);

/// The fewest moves that give each shard its weighted share of the buckets.
#[pyfunction]
#[pyo3(signature = (pieces, weights, buckets, /))]
fn place(
    py: Python<'_>,
    pieces: Vec<(u32, u32, String)>,
    weights: Vec<(String, u64)>,
    buckets: i64,
) -> PyResult<Vec<PyMove>> {
    let buckets = Buckets::new(buckets)?;
    let mut known = Vec::with_capacity(pieces.len());
    for (lo, hi, name) in pieces {
        let Some(shard) = weights.iter().position(|(other, _)| *other == name) else {
            return Err(BadOption::new_err(format!("shard {name} owns buckets and has no weight")));
        };
        known.push(placement::Piece { lo, hi, shard });
    }
    let numbers: Vec<u64> = weights.iter().map(|(_, weight)| *weight).collect();
    let moves = py.detach(|| placement::place(buckets, &known, &numbers))?;
    let name = |shard: usize| weights[shard].0.clone();
    Ok(moves.into_iter().map(|one| (name(one.source), name(one.target), one.pieces)).collect())
}

/// The xxh3 hash of a text, as 16 hexadecimal digits.
#[pyfunction]
#[pyo3(signature = (text, /))]
fn fingerprint(text: &str) -> String {
    shard_map::fingerprint(text.as_bytes())
}

/// The embedded SQL of a catalog or of a shard: (number, name, text) in order.
#[pyfunction]
#[pyo3(signature = (kind, /))]
fn migrations(kind: &str) -> PyResult<Vec<(i32, &'static str, &'static str)>> {
    Ok(sql::migrations(kind)?.iter().map(|one| (one.number, one.name, one.sql)).collect())
}

/// shardwright's routing core.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::{check_key, fingerprint, migrations, place, point, points, RangeTable};
}
