//! Which buckets move, and where, when shards are added, drained or weighted anew.
//!
//! Two steps. First how many buckets go from whom to whom: every shard ends within one bucket of its weighted share, no
//! bucket moves that need not, and as few pairs of shards as possible exchange any, since each pair costs a stream. Then
//! which buckets: those that touch what the target owns already, else those at the end of the source's last piece, so
//! that pieces stay few. Nothing is drawn by lot: the same input gives the same moves.

use crate::error::{Error, Result};
use crate::keyspace::Buckets;

/// Buckets `[lo, hi)` and the index of the shard that owns them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub lo: u32,
    pub hi: u32,
    pub shard: usize,
}

/// Buckets that go from one shard to another, as sorted disjoint pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub source: usize,
    pub target: usize,
    pub pieces: Vec<(u32, u32)>,
}

/// The fewest moves after which each shard owns its weighted share of the buckets.
///
/// `weights` has one entry a shard, in an order that breaks ties; a weight of 0 drains the shard. The pieces must cover
/// all buckets exactly.
pub fn place(buckets: Buckets, pieces: &[Piece], weights: &[u64]) -> Result<Vec<Move>> {
    let mut owners = owners_of(buckets, pieces, weights.len())?;
    let mut counts = vec![0_u64; weights.len()];
    for owner in &owners {
        counts[*owner] += 1;
    }
    let goals = goals(u64::from(buckets.count()), &counts, weights)?;
    let mut flows = flows(&counts, &goals);
    let mut moves: Vec<Move> =
        flows.iter().map(|flow| Move { source: flow.source, target: flow.target, pieces: Vec::new() }).collect();
    while flows.iter().any(|flow| flow.left > 0) {
        let (index, lo, hi) = next_piece(&owners, &flows);
        let flow = &mut flows[index];
        flow.left -= hi - lo;
        owners[lo..hi].fill(flow.target);
        moves[index].pieces.push((lo as u32, hi as u32));
    }
    for one in &mut moves {
        one.pieces = joined(std::mem::take(&mut one.pieces));
    }
    moves.sort_by_key(|one| (one.source, one.target));
    Ok(moves)
}

fn owners_of(buckets: Buckets, pieces: &[Piece], shards: usize) -> Result<Vec<usize>> {
    const NOBODY: usize = usize::MAX;
    let mut owners = vec![NOBODY; buckets.count() as usize];
    for piece in pieces {
        if piece.lo >= piece.hi || piece.hi > buckets.count() || piece.shard >= shards {
            return Err(Error::BadRange(format!(
                "[{},{}) is no piece of the buckets [0,{}) of a known shard",
                piece.lo,
                piece.hi,
                buckets.count()
            )));
        }
        for owner in &mut owners[piece.lo as usize..piece.hi as usize] {
            if *owner != NOBODY {
                return Err(Error::BadRange(format!("[{},{}) overlaps another piece", piece.lo, piece.hi)));
            }
            *owner = piece.shard;
        }
    }
    match owners.iter().position(|owner| *owner == NOBODY) {
        Some(bucket) => Err(Error::BadRange(format!("nobody owns bucket {bucket}"))),
        None => Ok(owners),
    }
}

/// How many buckets each shard shall own: its share rounded down, or up where that saves a move.
fn goals(total: u64, counts: &[u64], weights: &[u64]) -> Result<Vec<u64>> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return Err(Error::BadOption("at least one shard must have a weight above 0".into()));
    }
    let share = |weight: u64| u128::from(total) * u128::from(weight);
    let mut goals: Vec<u64> = weights.iter().map(|weight| (share(*weight) / sum) as u64).collect();
    let spare = (total - goals.iter().sum::<u64>()) as usize;
    // Who owns more than its rounded-down share keeps one more bucket first, then who lost most by rounding.
    let mut order: Vec<usize> = (0..weights.len()).filter(|shard| share(weights[*shard]) % sum != 0).collect();
    order.sort_by_key(|shard| {
        (counts[*shard] <= goals[*shard], std::cmp::Reverse(share(weights[*shard]) % sum), *shard)
    });
    for shard in order.into_iter().take(spare) {
        goals[shard] += 1;
    }
    Ok(goals)
}

struct Flow {
    source: usize,
    target: usize,
    left: usize,
}

/// Who gives how many buckets to whom: at most (givers + takers - 1) pairs.
fn flows(counts: &[u64], goals: &[u64]) -> Vec<Flow> {
    let mut surplus = Vec::new();
    let mut deficit = Vec::new();
    for (shard, (have, goal)) in counts.iter().zip(goals).enumerate() {
        match have.cmp(goal) {
            std::cmp::Ordering::Greater => surplus.push((shard, (have - goal) as usize)),
            std::cmp::Ordering::Less => deficit.push((shard, (goal - have) as usize)),
            std::cmp::Ordering::Equal => {}
        }
    }
    let mut flows = Vec::new();
    // A giver and a taker of equal size settle everything between themselves.
    surplus.retain(|(source, gives)| match deficit.iter().position(|(_, takes)| takes == gives) {
        Some(found) => {
            let (target, left) = deficit.remove(found);
            flows.push(Flow { source: *source, target, left });
            false
        }
        None => true,
    });
    let mut givers = surplus.into_iter();
    let mut takers = deficit.into_iter();
    let (mut giver, mut taker) = (givers.next(), takers.next());
    while let (Some((source, gives)), Some((target, takes))) = (giver, taker) {
        let left = gives.min(takes);
        flows.push(Flow { source, target, left });
        giver = if gives > left { Some((source, gives - left)) } else { givers.next() };
        taker = if takes > left { Some((target, takes - left)) } else { takers.next() };
    }
    flows
}

/// The next buckets to hand over: (index of the flow, lo, hi).
fn next_piece(owners: &[usize], flows: &[Flow]) -> (usize, usize, usize) {
    let runs = runs_of(owners);
    let owner_at = |position: usize| runs.get(position).map(|(lo, _)| owners[*lo]);
    for (index, flow) in flows.iter().enumerate().filter(|(_, flow)| flow.left > 0) {
        for (position, (lo, hi)) in runs.iter().enumerate().filter(|(_, (lo, _))| owners[*lo] == flow.source) {
            let size = flow.left.min(hi - lo);
            if owner_at(position + 1) == Some(flow.target) {
                return (index, hi - size, *hi);
            }
            if position > 0 && owner_at(position - 1) == Some(flow.target) {
                return (index, *lo, lo + size);
            }
        }
    }
    // Nothing touches: cut the end off the first giver's last run.
    for (index, flow) in flows.iter().enumerate().filter(|(_, flow)| flow.left > 0) {
        if let Some((lo, hi)) = runs.iter().rev().find(|(lo, _)| owners[*lo] == flow.source) {
            return (index, hi - flow.left.min(hi - lo), *hi);
        }
    }
    unreachable!("a shard never gives more buckets than it owns")
}

/// The longest pieces with one owner each, in order.
fn runs_of(owners: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (bucket, owner) in owners.iter().enumerate() {
        match runs.last_mut() {
            Some((lo, hi)) if owners[*lo] == *owner => *hi = bucket + 1,
            _ => runs.push((bucket, bucket + 1)),
        }
    }
    runs
}

fn joined(mut pieces: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    pieces.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for (lo, hi) in pieces {
        match out.last_mut() {
            Some(last) if last.1 == lo => last.1 = hi,
            _ => out.push((lo, hi)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(count: i64) -> Buckets {
        Buckets::new(count).unwrap()
    }

    fn piece(lo: u32, hi: u32, shard: usize) -> Piece {
        Piece { lo, hi, shard }
    }

    /// The pieces after the moves.
    fn after(count: i64, pieces: &[Piece], moves: &[Move]) -> Vec<Piece> {
        let mut owners = owners_of(buckets(count), pieces, usize::MAX).unwrap();
        for one in moves {
            for (lo, hi) in &one.pieces {
                for bucket in *lo..*hi {
                    assert_eq!(owners[bucket as usize], one.source);
                    owners[bucket as usize] = one.target;
                }
            }
        }
        runs_of(&owners).into_iter().map(|(lo, hi)| piece(lo as u32, hi as u32, owners[lo])).collect()
    }

    #[test]
    fn a_third_shard_takes_a_third_in_one_piece() {
        let before = [piece(0, 2048, 0), piece(2048, 4096, 1)];
        let moves = place(buckets(4096), &before, &[1, 1, 1]).unwrap();
        let moved: u32 = moves.iter().flat_map(|one| &one.pieces).map(|(lo, hi)| hi - lo).sum();
        assert_eq!(moved, 1365);
        assert!(moves.iter().all(|one| one.target == 2));
        let three = after(4096, &before, &moves);
        assert_eq!(three, [piece(0, 1366, 0), piece(1366, 2731, 2), piece(2731, 4096, 1)]);
        // Draining it again restores what was there.
        let back = place(buckets(4096), &three, &[1, 1, 0]).unwrap();
        assert_eq!(after(4096, &three, &back), before);
    }

    #[test]
    fn balance_is_left_alone() {
        let before = [piece(0, 1366, 0), piece(1366, 2731, 2), piece(2731, 4096, 1)];
        assert_eq!(place(buckets(4096), &before, &[1, 1, 1]), Ok(vec![]));
        assert_eq!(place(buckets(4096), &before, &[5, 5, 5]), Ok(vec![]));
    }

    #[test]
    fn weights_count() {
        let before = [piece(0, 16, 0)];
        let moves = place(buckets(16), &before, &[1, 3]).unwrap();
        assert_eq!(moves, [Move { source: 0, target: 1, pieces: vec![(4, 16)] }]);
    }

    #[test]
    fn equal_givers_and_takers_are_paired() {
        let before = [piece(0, 6, 0), piece(6, 16, 1)];
        let moves = place(buckets(16), &before, &[0, 0, 10, 6]).unwrap();
        assert_eq!(moves.iter().map(|one| (one.source, one.target)).collect::<Vec<_>>(), [(0, 3), (1, 2)]);
    }

    #[test]
    fn nonsense_is_refused() {
        let whole = [piece(0, 16, 0)];
        assert!(matches!(place(buckets(16), &whole, &[0, 0]), Err(Error::BadOption(_))));
        assert!(matches!(place(buckets(16), &whole, &[]), Err(Error::BadRange(_))));
        for bad in [vec![], vec![piece(0, 15, 0)], vec![piece(0, 17, 0)], vec![piece(0, 16, 0), piece(3, 4, 1)]] {
            assert!(matches!(place(buckets(16), &bad, &[1, 1]), Err(Error::BadRange(_))), "{bad:?}");
        }
    }

    #[test]
    fn many_random_clusters() {
        let mut state = 42_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..2000 {
            let count = 1_u32 << (1 + next(9));
            let shards = 1 + next(6) as usize;
            let mut before = Vec::new();
            let mut lo = 0;
            while lo < count {
                let hi = (lo + 1 + next(u64::from(count)) as u32).min(count);
                before.push(piece(lo, hi, next(shards as u64) as usize));
                lo = hi;
            }
            let mut weights: Vec<u64> = (0..shards).map(|_| next(5)).collect();
            weights[next(shards as u64) as usize] += 1;
            let moves = place(buckets(i64::from(count)), &before, &weights).unwrap();
            let done = after(i64::from(count), &before, &moves);
            let sum: u64 = weights.iter().sum();
            for (shard, weight) in weights.iter().enumerate() {
                let owned: u64 = done.iter().filter(|p| p.shard == shard).map(|p| u64::from(p.hi - p.lo)).sum();
                let (low, rest) = (u64::from(count) * weight / sum, u64::from(count) * weight % sum);
                assert!(owned == low || (rest > 0 && owned == low + 1), "{weights:?} {before:?}");
                let gives = moves.iter().any(|one| one.source == shard);
                let takes = moves.iter().any(|one| one.target == shard);
                assert!(!(gives && takes), "{shard} gives and takes");
            }
            assert_eq!(place(buckets(i64::from(count)), &done, &weights), Ok(vec![]), "not stable");
        }
    }
}
