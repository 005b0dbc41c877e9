//! The 64-bit seeded hashes that PostgreSQL's hash partitioning uses, bit for bit.
//!
//! Those of little-endian servers, that is: a big-endian one hashes bytes differently, integers alike.
//!
//! They are Bob Jenkins' lookup3 with PostgreSQL's start value. Golden vectors made by a real server and a comparison
//! with live servers keep the two equal (`tests/agreement`).

/// The seed that PostgreSQL's hash partitioning gives to every hash function.
pub const PARTITION_SEED: u64 = 8_816_678_312_871_386_365;

/// What combining the hash of one column with an empty row hash adds to it.
pub const PARTITION_ADD: u64 = 5_305_509_591_434_766_563;

/// lookup3's start value plus the constant that PostgreSQL adds to it.
const START: u32 = 0x9e37_79b9_u32.wrapping_add(3_923_095);

/// lookup3's three words of state.
struct State {
    a: u32,
    b: u32,
    c: u32,
}

impl State {
    #[inline]
    fn new(length: u32, seed: u64) -> State {
        let word = START.wrapping_add(length);
        let mut state = State { a: word, b: word, c: word };
        // A zero seed must give the unseeded hash in the low half, so the server does not mix it in.
        if seed != 0 {
            state.a = state.a.wrapping_add((seed >> 32) as u32);
            state.b = state.b.wrapping_add(seed as u32);
            state.mix();
        }
        state
    }

    #[inline]
    fn add(&mut self, a: u32, b: u32, c: u32) {
        self.a = self.a.wrapping_add(a);
        self.b = self.b.wrapping_add(b);
        self.c = self.c.wrapping_add(c);
    }

    #[inline]
    fn mix(&mut self) {
        let State { mut a, mut b, mut c } = *self;
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        *self = State { a, b, c };
    }

    #[inline]
    fn finish(self) -> u64 {
        let State { mut a, mut b, mut c } = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        c = (c ^ b).wrapping_sub(b.rotate_left(24));
        (u64::from(b) << 32) | u64::from(c)
    }
}

/// The hash of an integer key: `hashint8extended`, and so `hashint4extended` and `hashint2extended` too.
///
/// The server folds the high half of an int8 into the low half such that equal numbers of all three types agree.
#[inline]
pub fn hash_int(key: i64, seed: u64) -> u64 {
    let low = key as u32;
    let high = (key >> 32) as u32;
    let word = low ^ if key >= 0 { high } else { !high };
    let mut state = State::new(4, seed);
    state.a = state.a.wrapping_add(word);
    state.finish()
}

/// The hash of bytes: `hashtextextended` (deterministic collations), `uuid_hash_extended`, `hashvarlenaextended`.
#[inline]
pub fn hash_bytes(key: &[u8], seed: u64) -> u64 {
    // PostgreSQL's values are shorter than 1 GB; the cast cannot lose anything that a server could store.
    let mut state = State::new(key.len() as u32, seed);
    let mut blocks = key.chunks_exact(12);
    for block in &mut blocks {
        state.add(word(&block[0..4]), word(&block[4..8]), word(&block[8..12]));
        state.mix();
    }
    let rest = blocks.remainder();
    let mut tail = [0_u8; 12];
    let (head, last) = rest.split_at(rest.len().min(8));
    tail[..head.len()].copy_from_slice(head);
    // lookup3 keeps the lowest byte of the third word for the length, so the last bytes start one further up.
    tail[9..9 + last.len()].copy_from_slice(last);
    state.add(word(&tail[0..4]), word(&tail[4..8]), word(&tail[8..12]));
    state.finish()
}

#[inline]
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_all_widths_agree() {
        // hashint8extended folds the sign away: -1 as int8 must hash as the 32-bit word of -1.
        let mut state = State::new(4, PARTITION_SEED);
        state.a = state.a.wrapping_add(u32::MAX);
        assert_eq!(hash_int(-1, PARTITION_SEED), state.finish());
    }

    #[test]
    fn every_tail_length_differs() {
        let bytes = [0_u8; 40];
        let mut seen = std::collections::HashSet::new();
        for length in 0..=40 {
            assert!(seen.insert(hash_bytes(&bytes[..length], PARTITION_SEED)), "length {length}");
        }
    }
}
