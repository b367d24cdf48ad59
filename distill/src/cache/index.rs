//! Where the records are: 16 bytes of each in memory, and little beside.
//!
//! Sorted arrays, one for each value of a key's first bits, so that an insertion moves a few
//! thousandths of the whole. Only eight bytes of a key are kept: two keys may share them, so a place
//! found is a candidate, and the record's own key decides.

/// Arrays, by the first bits of the key.
const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 12;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of its segment.
    pub segment: u32,
    /// Where it begins there.
    pub offset: u32,
}

/// Places by the first eight bytes of keys.
#[derive(Clone, Debug)]
pub struct Index {
    shards: Vec<Vec<(u64, Place)>>,
    len: usize,
}

/// An index that is being filled, and not to be asked before.
#[derive(Clone, Debug)]
pub struct IndexBuilder(Index);

impl Default for Index {
    fn default() -> Self {
        Self { shards: vec![Vec::new(); SHARDS], len: 0 }
    }
}

impl Index {
    /// Adds a place of a record.
    pub fn insert(&mut self, prefix: u64, place: Place) {
        let shard = &mut self.shards[shard_of(prefix)];
        let at = shard.partition_point(|entry| *entry < (prefix, place));
        make_room(shard);
        shard.insert(at, (prefix, place));
        self.len += 1;
    }

    /// Places whose keys begin so, the last in the order of segments and offsets first: a record that
    /// was written again is found before the old one.
    pub fn places(&self, prefix: u64) -> impl Iterator<Item = Place> + '_ {
        let shard = &self.shards[shard_of(prefix)];
        let first = shard.partition_point(|entry| entry.0 < prefix);
        let same = shard[first..].iter().take_while(move |entry| entry.0 == prefix).count();
        shard[first..first + same].iter().rev().map(|entry| entry.1)
    }

    /// Places in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory it holds, in bytes.
    pub fn bytes(&self) -> usize {
        let entries: usize = self.shards.iter().map(Vec::capacity).sum();
        entries * size_of::<(u64, Place)>() + SHARDS * size_of::<Vec<(u64, Place)>>()
    }
}

impl IndexBuilder {
    /// Nothing in it; room for `places` where they are spread evenly.
    pub fn with_room(places: usize) -> Self {
        let mut index = Index::default();
        // Digests spread so that a shard rarely has more than this.
        let even = places / SHARDS;
        index.shards.iter_mut().for_each(|shard| shard.reserve_exact(even + even / 16));
        Self(index)
    }

    /// Adds a place of a record.
    pub fn push(&mut self, prefix: u64, place: Place) {
        let shard = &mut self.0.shards[shard_of(prefix)];
        make_room(shard);
        shard.push((prefix, place));
        self.0.len += 1;
    }

    /// The index of all that was added.
    pub fn finish(mut self) -> Index {
        self.0.shards.iter_mut().for_each(|shard| shard.sort_unstable());
        self.0
    }
}

/// By an eighth, where a vector itself would double: a shard is short, and memory counts.
fn make_room(shard: &mut Vec<(u64, Place)>) {
    if shard.len() == shard.capacity() {
        shard.reserve_exact(shard.len() / 8 + 1);
    }
}

fn shard_of(prefix: u64) -> usize {
    (prefix >> (64 - SHARD_BITS)) as usize
}
