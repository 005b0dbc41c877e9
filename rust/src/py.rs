//! The Python module `shardwright._core`: conversions and the release of the GIL, nothing else.

mod key;

use std::borrow::Cow;

use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};

use self::key::{uuid_class, Key, Keys};
use crate::error::Error;
use crate::keyspace::{Buckets, Strategy};
use crate::shard_map::TableRange;
use crate::{migrations as sql, placement, shard_map};

import_exception!(shardwright.errors, BadKey);
import_exception!(shardwright.errors, BadOption);
import_exception!(shardwright.errors, BadRange);
import_exception!(shardwright.errors, UnsupportedKeyType);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::UnsupportedKeyType(text) => UnsupportedKeyType::new_err(text),
            Error::BadRange(text) => BadRange::new_err(text),
            Error::BadOption(text) => BadOption::new_err(text),
        }
    }
}

// ---------------------------------------------------------------- keys and points

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
