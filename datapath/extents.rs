// SPDX-License-Identifier: GPL-2.0

//! The extent map of an image: the blocks of a file, and their places on the disk below.
//!
//! The map is filled a chunk at a time, when requests need it. It may always know less than the
//! file system: what is unknown takes another route. It must never know more, so a task that
//! changes the places of blocks removes them from the map first, and waits for the requests that
//! may have looked them up.
//!
//! Lookups take no lock. The caller excludes that two tasks [`learn`](Extents::learn),
//! [`remove`](Extents::remove) or [`clear`](Extents::clear) at the same time.

use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        SetOnce, //
    },
};

/// The place of a block, in blocks of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// It is not known.
    Unknown,
    /// The block is a hole, or its content on the disk is not valid.
    Unmapped,
    /// The block is there.
    At(u64),
}

impl Place {
    const UNKNOWN: u64 = 0;
    const UNMAPPED: u64 = 1;

    /// Returns the number that stands for the place in the map. Block 0 of a disk holds no data of
    /// files, so `At(0)` does not occur.
    fn encode(self) -> u64 {
        match self {
            Self::Unknown => Self::UNKNOWN,
            Self::Unmapped => Self::UNMAPPED,
            Self::At(place) => place.saturating_add(1),
        }
    }

    fn decode(number: u64) -> Self {
        match number {
            Self::UNKNOWN => Self::Unknown,
            Self::UNMAPPED => Self::Unmapped,
            number => Self::At(number - 1),
        }
    }
}

/// Successive blocks of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Run {
    /// They are one extent.
    Mapped {
        /// The place of the first block.
        place: u64,
        /// The number of blocks.
        count: u64,
    },
    /// The map has none of them.
    Other {
        /// The number of blocks.
        count: u64,
    },
}

/// The places that the map knows of blocks that are learned together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Knowledge {
    /// It knows none.
    None,
    /// Some were forgotten since they were learned.
    Part,
    /// It knows all, or there are no such blocks.
    All,
}

/// A part of the file, of [`Chunk::BLOCKS`] blocks.
struct Chunk {
    /// The place of the first block, encoded, if the blocks are one extent; else 0.
    start: Atomic<u64>,
    /// The encoded places of all blocks, once they were not one extent. While `start` is not 0,
    /// they are right, too.
    places: SetOnce<KVec<Atomic<u64>>>,
    /// Changes whenever blocks are [forgotten](Extents::forget).
    forgotten: Atomic<u32>,
    /// True if all blocks are unmapped, and have no entries.
    is_hole: Atomic<bool>,
    /// True if the map has no room for the places: all blocks count as unmapped.
    is_refused: Atomic<bool>,
}

impl Chunk {
    const BLOCKS: u64 = 512;

    fn new() -> Self {
        Self {
            start: Atomic::new(Place::UNKNOWN),
            places: SetOnce::new(),
            forgotten: Atomic::new(0),
            is_hole: Atomic::new(false),
            is_refused: Atomic::new(false),
        }
    }

    /// Returns the place of the block with number `index` in the chunk.
    fn place(&self, index: u64) -> Place {
        // ORDERING: A place is found before the durability of what made it valid is looked up.
        match self.start.load(Acquire) {
            Place::UNKNOWN => match self.entry(index) {
                Some(entry) => Place::decode(entry.load(Acquire)),
                None if self.is_hole.load(Relaxed) || self.is_refused.load(Relaxed) => {
                    Place::Unmapped
                }
                None => Place::Unknown,
            },
            start => Place::decode(start.saturating_add(index)),
        }
    }

    fn entry(&self, index: u64) -> Option<&Atomic<u64>> {
        self.places.as_ref()?.get(usize::try_from(index).ok()?)
    }

    /// Returns the entries of the blocks with numbers from `first` to `end` in the chunk.
    fn entries(&self, first: u64, end: u64) -> impl Iterator<Item = &Atomic<u64>> {
        let count = end.saturating_sub(first) as usize;
        self.places
            .as_ref()
            .map_or(&[][..], |places| places)
            .iter()
            .skip(first as usize)
            .take(count)
    }

    /// Turns the places of blocks that are unmapped into unknown ones. Any context.
    fn forget(&self, first: u64, end: u64) {
        // ORDERING: `learn` sees the change, or this sees what `learn` has entered.
        self.forgotten.fetch_add(1, Full);
        self.is_hole.store(false, Relaxed);
        for entry in self.entries(first, end) {
            let _ = entry.cmpxchg(Place::UNMAPPED, Place::UNKNOWN, Relaxed);
        }
    }

    /// Makes the places of blocks unknown; of all of the chunk, if it is one extent whose blocks
    /// have no entries.
    fn remove(&self, first: u64, end: u64) {
        for entry in self.entries(first, end) {
            entry.store(Place::UNKNOWN, Relaxed);
        }
        self.start.store(Place::UNKNOWN, Relaxed);
        self.is_hole.store(false, Relaxed);
        self.is_refused.store(false, Relaxed);
    }

    /// Asks for the places of the blocks that are unknown, of the `count` blocks that exist. Takes
    /// one of `room` if it has to keep the places of all blocks. Fails with `ENOMEM`.
    fn learn(&self, count: u64, room: &Atomic<u32>, find: impl Fn(u64) -> Option<u64>) -> Result {
        if self.start.load(Relaxed) != Place::UNKNOWN {
            return Ok(());
        }
        // ORDERING: See `forget`.
        let forgotten = self.forgotten.fetch_add(0, Full);
        let find = |index| {
            let place = if index < count { find(index) } else { None };
            place.map_or(Place::Unmapped, Place::At).encode()
        };
        match self.places.as_ref() {
            Some(places) => {
                for (index, entry) in (0..).zip(places.iter()) {
                    let _ = (entry.load(Relaxed) == Place::UNKNOWN)
                        .then(|| entry.store(find(index), Relaxed));
                }
                self.start.store(extent_start(places), Relaxed);
            }
            None => {
                let mut places = KVec::with_capacity(Self::BLOCKS as usize, GFP_KERNEL)?;
                for index in 0..Self::BLOCKS {
                    places.push(Atomic::new(find(index)), GFP_KERNEL)?;
                }
                let is_unmapped = |place: &Atomic<u64>| place.load(Relaxed) == Place::UNMAPPED;
                match (extent_start(&places), room.load(Relaxed).checked_sub(1)) {
                    _ if places.iter().all(is_unmapped) => self.is_hole.store(true, Relaxed),
                    (Place::UNKNOWN, Some(rest)) => {
                        room.store(rest, Relaxed);
                        self.places.populate(places);
                    }
                    (Place::UNKNOWN, None) => self.is_refused.store(true, Relaxed),
                    (start, _) => self.start.store(start, Relaxed),
                }
            }
        }
        if self.forgotten.fetch_add(0, Full) != forgotten {
            // Blocks that were written meanwhile may have been found unmapped before.
            self.forget(0, Self::BLOCKS);
        }
        Ok(())
    }
}

/// Returns the place of the first block, encoded, if the blocks are one extent; else 0.
fn extent_start(places: &[Atomic<u64>]) -> u64 {
    let start = places.first().map_or(0, |place| place.load(Relaxed));
    let is_extent = matches!(Place::decode(start), Place::At(_))
        && (start..)
            .zip(places)
            .all(|(wanted, place)| place.load(Relaxed) == wanted);
    if is_extent {
        start
    } else {
        Place::UNKNOWN
    }
}

/// A group of chunks, which are made together.
type Group = KVec<Chunk>;

/// The extent map of a file.
pub(crate) struct Extents {
    /// The number of blocks of the file, as far as the map has room for them.
    blocks: Atomic<u64>,
    /// The number of chunks that may still get an array of places.
    room: Atomic<u32>,
    groups: KVVec<SetOnce<Group>>,
}

impl Extents {
    /// The number of blocks that are learned together.
    pub(crate) const CHUNK: u64 = Chunk::BLOCKS;

    /// The number of chunks of a group.
    const GROUP: u64 = 64;

    /// The maximum number of chunks that are not one extent: 64 MiB of memory, for 32 GiB of a file
    /// in blocks of 4 KiB.
    const ROOM: u32 = 1 << 14;

    /// Makes the map of a file of `blocks` blocks, of which nothing is known, with room for a file
    /// of four times that size. May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(blocks: u64) -> Result<Self> {
        let count = blocks
            .div_ceil(Chunk::BLOCKS * Self::GROUP)
            .saturating_mul(4);
        let mut groups = KVVec::with_capacity(usize::try_from(count)?, GFP_KERNEL)?;
        for _ in 0..count {
            groups.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self {
            blocks: Atomic::new(blocks),
            room: Atomic::new(Self::ROOM),
            groups,
        })
    }

    /// Returns whether there was no room for the places of some blocks.
    pub(crate) fn is_full(&self) -> bool {
        self.room.load(Relaxed) == 0
    }

    /// Sets the number of blocks of the file. Nothing is known of new ones. Any context.
    pub(crate) fn set_blocks(&self, blocks: u64) {
        let room = (self.groups.len() as u64).saturating_mul(Chunk::BLOCKS * Self::GROUP);
        let blocks = blocks.min(room);
        let old = self.blocks.xchg(blocks, Relaxed);
        self.forget(old, blocks.saturating_sub(old));
    }

    fn group(&self, block: u64) -> Option<&SetOnce<Group>> {
        let number = block / (Chunk::BLOCKS * Self::GROUP);
        self.groups.get(usize::try_from(number).ok()?)
    }

    /// Returns the chunk of a block, if anything is known about it.
    fn chunk(&self, block: u64) -> Option<&Chunk> {
        let number = block / Chunk::BLOCKS % Self::GROUP;
        self.group(block)?.as_ref()?.get(number as usize)
    }

    fn place(&self, block: u64) -> Place {
        self.chunk(block)
            .map_or(Place::Unknown, |chunk| chunk.place(block % Chunk::BLOCKS))
    }

    /// Returns the first of the runs that `count` blocks from `block` consist of. Any context.
    pub(crate) fn run(&self, block: u64, count: u64) -> Run {
        let rest = 1..count;
        match self.place(block) {
            // Most requests are for one block.
            Place::At(place) if count == 1 => Run::Mapped { place, count },
            Place::At(place) => {
                let follows = |&offset: &u64| {
                    let wanted = Place::At(place.saturating_add(offset));
                    self.place(block.saturating_add(offset)) == wanted
                };
                let count = rest.take_while(follows).count() as u64 + 1;
                Run::Mapped { place, count }
            }
            _ => {
                let follows = |&offset: &u64| {
                    !matches!(self.place(block.saturating_add(offset)), Place::At(_))
                };
                let count = rest.take_while(follows).count() as u64 + 1;
                Run::Other { count }
            }
        }
    }

    /// Returns a block of unknown place, which can be learned, among `count` blocks from `block`.
    /// Any context.
    pub(crate) fn unknown(&self, block: u64, count: u64) -> Option<u64> {
        self.first(Place::Unknown, block, count)
    }

    /// Returns how much is known about the blocks that are learned together with `block`. Any
    /// context.
    pub(crate) fn knowledge(&self, block: u64) -> Knowledge {
        let blocks = self.learned_with(block);
        let count = blocks.clone().count();
        let unknown = blocks
            .filter(|&block| self.place(block) == Place::Unknown)
            .count();
        match unknown {
            0 => Knowledge::All,
            _ if unknown < count => Knowledge::Part,
            _ => Knowledge::None,
        }
    }

    /// Returns a few of the blocks that are learned together with `block`. Any context.
    pub(crate) fn sample(&self, block: u64) -> impl Iterator<Item = u64> {
        self.learned_with(block).step_by(Chunk::BLOCKS as usize / 8)
    }

    /// Returns the blocks that are learned together with `block`.
    fn learned_with(&self, block: u64) -> Range<u64> {
        let start = block - block % Chunk::BLOCKS;
        let end = start.saturating_add(Chunk::BLOCKS);
        start..end.min(self.blocks.load(Relaxed))
    }

    /// Returns whether a block among `count` blocks from `block` is known to be unmapped. Any
    /// context.
    pub(crate) fn has_unmapped(&self, block: u64, count: u64) -> bool {
        self.first(Place::Unmapped, block, count).is_some()
    }

    /// Returns the first block with this place among `count` blocks from `block`.
    fn first(&self, place: Place, block: u64, count: u64) -> Option<u64> {
        let end = block.saturating_add(count).min(self.blocks.load(Relaxed));
        (block..end).find(|&block| self.place(block) == place)
    }

    /// Asks for the places of the unknown blocks around `block`: `find` returns that of a block, or
    /// `None` if it is unmapped. May sleep. Fails with `ENOMEM`.
    pub(crate) fn learn(&self, block: u64, find: impl Fn(u64) -> Option<u64>) -> Result {
        let blocks = self.blocks.load(Relaxed);
        let Some(group) = self.group(block).filter(|_| block < blocks) else {
            return Ok(());
        };
        if group.as_ref().is_none() {
            let mut chunks = KVec::with_capacity(Self::GROUP as usize, GFP_KERNEL)?;
            for _ in 0..Self::GROUP {
                chunks.push(Chunk::new(), GFP_KERNEL)?;
            }
            group.populate(chunks);
        }
        let start = block - block % Chunk::BLOCKS;
        let count = blocks.saturating_sub(start);
        self.chunk(block).map_or(Ok(()), |chunk| {
            chunk.learn(count, &self.room, |index| find(start.saturating_add(index)))
        })
    }

    /// Calls `change` with the known chunks of `count` blocks from `block`, and the first block in
    /// the chunk and the end of the blocks.
    fn for_each(&self, block: u64, count: u64, change: impl Fn(&Chunk, u64, u64)) {
        let end = block.saturating_add(count);
        let mut first = block;
        while first < end {
            let start = first - first % Chunk::BLOCKS;
            let next = start.saturating_add(Chunk::BLOCKS);
            if let Some(chunk) = self.chunk(first) {
                change(chunk, first - start, end.min(next) - start);
            }
            first = next;
        }
    }

    /// Makes the places of those of `count` blocks from `block` unknown that were unmapped, because
    /// they were written through the file. Any context.
    pub(crate) fn forget(&self, block: u64, count: u64) {
        self.for_each(block, count, Chunk::forget);
    }

    /// Makes the places of `count` blocks from `block` unknown.
    pub(crate) fn remove(&self, block: u64, count: u64) {
        self.for_each(block, count, Chunk::remove);
    }

    /// Makes all places unknown. Calls `pause` between groups of chunks.
    pub(crate) fn clear(&self, pause: impl Fn()) {
        for group in self.groups.iter().filter_map(SetOnce::as_ref) {
            for chunk in group {
                chunk.remove(0, Chunk::BLOCKS);
            }
            pause();
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_extents))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    /// An image of 1200 blocks: one extent of 600, a hole of 10, one extent to the end.
    fn find(block: u64) -> Option<u64> {
        match block {
            0..600 => Some(1000 + block),
            610..1200 => Some(5000 + block),
            _ => None,
        }
    }

    impl Extents {
        fn find(&self, block: u64, count: u64) -> Option<u64> {
            match self.run(block, count) {
                Run::Mapped {
                    place,
                    count: found,
                } => (found == count).then_some(place),
                Run::Other { .. } => None,
            }
        }
    }

    fn learned() -> Result<Extents> {
        let extents = Extents::new(1200)?;
        for block in [0, 512, 1024] {
            extents.learn(block, find)?;
        }
        Ok(extents)
    }

    #[test]
    fn finds_extents() -> Result {
        let extents = learned()?;
        assert_eq!(extents.find(0, 512), Some(1000));
        assert_eq!(extents.find(511, 2), Some(1511));
        assert_eq!(extents.find(500, 100), Some(1500));
        assert_eq!(extents.find(500, 101), None);
        assert_eq!(extents.find(609, 1), None);
        assert_eq!(extents.find(610, 590), Some(5610));
        assert_eq!(extents.find(1199, 2), None);
        assert_eq!(extents.find(u64::MAX, 1), None);
        Ok(())
    }

    #[test]
    fn divides_requests_into_runs() -> Result {
        let extents = learned()?;
        let mapped = |place, count| Run::Mapped { place, count };
        assert_eq!(extents.run(590, 40), mapped(1590, 10));
        assert_eq!(extents.run(600, 40), Run::Other { count: 10 });
        assert_eq!(extents.run(610, 40), mapped(5610, 40));
        assert_eq!(extents.run(1190, 40), mapped(6190, 10));
        assert_eq!(extents.run(1200, 40), Run::Other { count: 40 });
        assert_eq!(extents.run(u64::MAX, 1), Run::Other { count: 1 });
        Ok(())
    }

    #[test]
    fn knows_what_it_does_not_know() -> Result {
        let extents = Extents::new(1200)?;
        assert_eq!(extents.find(0, 1), None);
        assert_eq!(extents.unknown(3, 1), Some(3));
        assert_eq!(extents.knowledge(1199), Knowledge::None);
        assert_eq!(extents.knowledge(2000), Knowledge::All);
        extents.learn(3, find)?;
        assert_eq!(extents.unknown(0, 512), None);
        assert_eq!(extents.unknown(511, 2), Some(512));
        assert_eq!(extents.find(511, 1), Some(1511));
        let extents = learned()?;
        assert_eq!(extents.unknown(595, 20), None);
        assert!(extents.has_unmapped(609, 20));
        assert!(!extents.has_unmapped(610, 590));
        // Beyond the end.
        assert!(!extents.has_unmapped(1200, 10));
        Ok(())
    }

    #[test]
    fn learns_what_was_written() -> Result {
        let extents = learned()?;
        extents.forget(605, 1);
        assert_eq!(extents.unknown(595, 20), Some(605));
        assert_eq!(extents.knowledge(512), Knowledge::Part);
        assert_eq!(extents.find(610, 1), Some(5610));
        extents.learn(605, |_| Some(77))?;
        assert_eq!(extents.find(605, 1), Some(77));
        assert_eq!(extents.find(604, 1), None);
        // Known blocks are not forgotten.
        extents.forget(0, 1200);
        assert_eq!(extents.knowledge(3), Knowledge::All);
        assert_eq!(extents.find(0, 512), Some(1000));
        assert_eq!(extents.find(605, 1), Some(77));
        Ok(())
    }

    #[test]
    fn samples_stay_in_the_file() -> Result {
        let extents = learned()?;
        assert_eq!(extents.sample(600).count(), 8);
        assert!(extents.sample(1100).eq([1024, 1088, 1152]));
        assert_eq!(extents.sample(5000).count(), 0);
        Ok(())
    }

    #[test]
    fn holes_take_no_room() -> Result {
        let extents = Extents::new(1200)?;
        extents.room.store(1, Relaxed);
        extents.learn(0, |_| None)?;
        assert!(!extents.is_full());
        assert!(extents.has_unmapped(0, 512));
        assert_eq!(extents.knowledge(0), Knowledge::All);
        extents.forget(7, 1);
        assert_eq!(extents.unknown(7, 1), Some(7));
        extents.learn(7, |block| (block == 7).then_some(70))?;
        assert_eq!(extents.find(7, 1), Some(70));
        assert!(extents.has_unmapped(8, 1));
        // No room is left for another chunk of several extents.
        assert!(extents.is_full());
        extents.learn(512, find)?;
        assert_eq!(extents.find(700, 1), None);
        assert_eq!(extents.knowledge(512), Knowledge::All);
        Ok(())
    }

    #[test]
    fn learning_does_not_miss_a_write() -> Result {
        let extents = learned()?;
        extents.forget(605, 1);
        // The block is written after it was found unmapped, and before that is entered.
        extents.learn(605, |block| {
            extents.forget(605, 1);
            find(block)
        })?;
        assert_eq!(extents.unknown(605, 1), Some(605));
        Ok(())
    }

    #[test]
    fn removes_blocks() -> Result {
        let extents = learned()?;
        extents.remove(620, 10);
        assert_eq!(extents.find(619, 1), Some(5619));
        assert_eq!(extents.find(620, 1), None);
        assert_eq!(extents.find(629, 1), None);
        assert_eq!(extents.find(630, 1), Some(5630));
        // Nothing stays known of a chunk that was one extent.
        extents.remove(510, 1);
        assert_eq!(extents.find(0, 1), None);
        assert_eq!(extents.find(512, 1), Some(1512));
        // A chunk that becomes one extent.
        extents.remove(512, 512);
        extents.learn(512, |block| Some(9000 + block))?;
        assert_eq!(extents.find(512, 512), Some(9512));
        // Beyond the end.
        extents.learn(1200, |_| None)?;
        assert_eq!(extents.unknown(1200, 1), None);
        assert_eq!(extents.unknown(1199, 2), None);
        extents.set_blocks(1201);
        assert_eq!(extents.find(1200, 1), None);
        assert_eq!(extents.unknown(1200, 1), Some(1200));
        extents.remove(512, 1);
        assert_eq!(extents.find(512, 1), None);
        assert_eq!(extents.find(513, 511), Some(9513));
        extents.clear(|| ());
        assert_eq!(extents.unknown(0, 1), Some(0));
        assert_eq!(extents.find(1199, 1), None);
        Ok(())
    }
}
