//! From a key to its range: an array look-up for hash keyspaces, a binary search for range keyspaces.

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::keyspace::{KeyType, Strategy};

/// A range as the shard map has it: `[lo, hi)`, unbounded where `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRange {
    pub id: i64,
    pub lo: Option<i64>,
    pub hi: Option<i64>,
}

/// Where a key is: its point and the position of its range in the order of the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    pub point: i64,
    pub position: usize,
}

/// All ranges of one keyspace, without a gap or an overlap.
#[derive(Debug)]
pub struct RangeTable {
    key_type: KeyType,
    strategy: Strategy,
    ids: Box<[i64]>,
    lookup: Lookup,
}

#[derive(Debug)]
enum Lookup {
    /// The range's position by bucket; a keyspace has at most 65536 buckets, so positions fit into 16 bits.
    Buckets(Box<[u16]>),
    /// The first point of each range.
    Starts(Box<[i64]>),
}

impl RangeTable {
    /// Check that the ranges cover the keyspace exactly, in whatever order they come.
    pub fn new(strategy: Strategy, key_type: KeyType, mut ranges: Vec<TableRange>) -> Result<RangeTable> {
        ranges.sort_by_key(|range| (range.lo, range.hi));
        let (first, end) = match strategy {
            Strategy::Hash(buckets) => (Some(0), Some(i64::from(buckets.count()))),
            Strategy::Range => (None, None),
        };
        check_cover(&ranges, first, end)?;
        let lookup = match strategy {
            Strategy::Hash(buckets) => {
                let mut positions = Vec::with_capacity(buckets.count() as usize);
                for (position, range) in ranges.iter().enumerate() {
                    // Both bounds are there and inside the keyspace: check_cover saw to it.
                    let count = range.hi.unwrap_or(0) - range.lo.unwrap_or(0);
                    positions.extend((0..count).map(|_| position as u16));
                }
                Lookup::Buckets(positions.into_boxed_slice())
            }
            Strategy::Range => Lookup::Starts(ranges.iter().map(|range| range.lo.unwrap_or(i64::MIN)).collect()),
        };
        Ok(RangeTable { key_type, strategy, ids: ranges.iter().map(|range| range.id).collect(), lookup })
    }

    /// The type of the keyspace's keys.
    #[inline]
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// The ids of the ranges in the order of their points.
    #[inline]
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// Where an integer key is.
    #[inline]
    pub fn locate_int(&self, key: i64) -> Located {
        let point = match self.strategy {
            Strategy::Hash(buckets) => i64::from(buckets.of_int(key)),
            Strategy::Range => key,
        };
        Located { point, position: self.position_of(point) }
    }

    /// Where a key that is bytes is.
    #[inline]
    pub fn locate_bytes(&self, key: &[u8]) -> Located {
        let point = match self.strategy {
            Strategy::Hash(buckets) => i64::from(buckets.of_bytes(key)),
            Strategy::Range => unreachable!("Strategy::new refuses range keyspaces of other types than integers"),
        };
        Located { point, position: self.position_of(point) }
    }

    /// The position of the range that holds a point.
    pub fn locate_point(&self, point: i64) -> Result<usize> {
        match self.strategy {
            Strategy::Hash(buckets) if !(0..i64::from(buckets.count())).contains(&point) => Err(Error::BadRange(
                format!("point {point} is outside the keyspace's buckets 0 to {}", buckets.count() - 1),
            )),
            _ => Ok(self.position_of(point)),
        }
    }

    #[inline]
    fn position_of(&self, point: i64) -> usize {
        match &self.lookup {
            Lookup::Buckets(positions) => usize::from(positions[point as usize]),
            Lookup::Starts(starts) => starts.partition_point(|start| *start <= point) - 1,
        }
    }
}

fn check_cover(ranges: &[TableRange], first: Option<i64>, end: Option<i64>) -> Result<()> {
    let (Some(head), Some(tail)) = (ranges.first(), ranges.last()) else {
        return Err(Error::BadRange("the keyspace has no ranges".into()));
    };
    for range in ranges {
        if let (Some(lo), Some(hi)) = (range.lo, range.hi) {
            if lo >= hi {
                return Err(Error::BadRange(format!("range {} is empty: {}", range.id, show(range.lo, range.hi))));
            }
        }
    }
    if head.lo != first {
        return Err(Error::BadRange(format!(
            "the first range, {} of range {}, does not begin where the keyspace does, {}",
            show(head.lo, head.hi),
            head.id,
            show(first, end)
        )));
    }
    for pair in ranges.windows(2) {
        let (left, right) = (&pair[0], &pair[1]);
        match (left.hi, right.lo) {
            (Some(hi), Some(lo)) if hi == lo => {}
            (Some(hi), Some(lo)) if hi < lo => {
                return Err(Error::BadRange(format!(
                    "no range holds {} between ranges {} and {}",
                    show(left.hi, right.lo),
                    left.id,
                    right.id
                )))
            }
            _ => {
                return Err(Error::BadRange(format!(
                    "ranges {} and {} overlap: {} and {}",
                    left.id,
                    right.id,
                    show(left.lo, left.hi),
                    show(right.lo, right.hi)
                )))
            }
        }
    }
    if tail.hi != end {
        return Err(Error::BadRange(format!(
            "the last range, {} of range {}, does not end where the keyspace does, {}",
            show(tail.lo, tail.hi),
            tail.id,
            show(first, end)
        )));
    }
    Ok(())
}

fn show(lo: Option<i64>, hi: Option<i64>) -> String {
    let hi = hi.map_or(String::new(), |point| point.to_string());
    lo.map_or(format!("(,{hi})"), |point| format!("[{point},{hi})"))
}

/// The xxh3 fingerprint of a shard map's canonical text, as 16 hexadecimal digits.
pub fn fingerprint(text: &[u8]) -> String {
    format!("{:016x}", xxh3_64(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::Buckets;

    fn range(id: i64, lo: Option<i64>, hi: Option<i64>) -> TableRange {
        TableRange { id, lo, hi }
    }

    fn hash(ranges: Vec<TableRange>) -> Result<RangeTable> {
        RangeTable::new(Strategy::Hash(Buckets::new(16).unwrap()), KeyType::Int8, ranges)
    }

    fn line(ranges: Vec<TableRange>) -> Result<RangeTable> {
        RangeTable::new(Strategy::Range, KeyType::Int8, ranges)
    }

    #[test]
    fn buckets_find_their_range() {
        let table = hash(vec![range(7, Some(5), Some(16)), range(9, Some(0), Some(5))]).unwrap();
        assert_eq!(table.ids(), [9, 7]);
        assert_eq!(table.locate_point(4), Ok(0));
        assert_eq!(table.locate_point(5), Ok(1));
        assert!(table.locate_point(16).is_err());
        assert!(table.locate_point(-1).is_err());
        for key in -1000..1000 {
            let found = table.locate_int(key);
            assert_eq!(found.position, usize::from(found.point >= 5));
        }
    }

    #[test]
    fn lines_find_their_range() {
        let table =
            line(vec![range(1, None, Some(-3)), range(2, Some(-3), Some(i64::MAX)), range(3, Some(i64::MAX), None)])
                .unwrap();
        for (key, position) in [(i64::MIN, 0), (-4, 0), (-3, 1), (i64::MAX - 1, 1), (i64::MAX, 2)] {
            assert_eq!(table.locate_int(key), Located { point: key, position });
        }
    }

    #[test]
    fn one_range_may_hold_the_whole_line() {
        assert_eq!(line(vec![range(1, None, None)]).unwrap().locate_int(i64::MIN).position, 0);
    }

    #[test]
    fn gaps_overlaps_and_outsiders_are_refused() {
        for bad in [
            vec![],
            vec![range(1, Some(0), Some(15))],
            vec![range(1, Some(1), Some(16))],
            vec![range(1, None, Some(16))],
            vec![range(1, Some(0), None)],
            vec![range(1, Some(0), Some(17))],
            vec![range(1, Some(-1), Some(16))],
            vec![range(1, Some(0), Some(5)), range(2, Some(6), Some(16))],
            vec![range(1, Some(0), Some(5)), range(2, Some(4), Some(16))],
            vec![range(1, Some(0), Some(16)), range(2, Some(0), Some(16))],
            vec![range(1, Some(0), Some(16)), range(2, Some(16), Some(16))],
            vec![range(1, Some(0), Some(5)), range(2, Some(9), Some(5)), range(3, Some(9), Some(16))],
        ] {
            assert!(matches!(hash(bad.clone()), Err(Error::BadRange(_))), "{bad:?}");
        }
        for bad in [
            vec![range(1, Some(i64::MIN), None)],
            vec![range(1, None, Some(i64::MAX))],
            vec![range(1, None, None), range(2, None, None)],
            vec![range(1, None, Some(3)), range(2, None, None)],
            vec![range(1, None, None), range(2, Some(3), None)],
        ] {
            assert!(matches!(line(bad.clone()), Err(Error::BadRange(_))), "{bad:?}");
        }
    }

    #[test]
    fn fingerprints_are_xxh3() {
        // The reference implementation's hash of the empty input.
        assert_eq!(fingerprint(b""), "2d06800538d394c2");
    }
}
