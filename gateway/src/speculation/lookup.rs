//! What followed the last time: an index of a sequence's own text.
//!
//! Hash chains, as in LZ77 compressors (Deutsch, RFC 1951 §4): for each bucket of [`GRAM`] ids the latest place where such a gram
//! ended, and for each place the one before it in the same bucket. Taking in an id and looking one place up cost the same however long
//! the text is. Only the last [`WINDOW`] places are kept, in 8 bytes each; the tables grow with the text up to that.

/// Ids of a gram. What two ids say of the third is mostly wrong; with three a match is rare in a text that does not repeat.
pub(super) const GRAM: usize = 3;

/// Ids compared at most; longer matches are as good as this one.
pub(super) const LONGEST: u32 = 32;

/// Places looked at for one proposal; in text that repeats, the latest are the best.
pub(super) const CANDIDATES: usize = 8;

/// Places that are remembered; a power of two.
pub(super) const WINDOW: usize = 1 << 15;

/// Places that a short text has room for.
const LEAST: usize = 64;

/// No place.
const NONE: u32 = u32::MAX;

/// The committed ids of a sequence by position: its prompt, then its answer so far.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    prompt: &'a [u32],
    answer: &'a [u32],
}

/// An index of one sequence's history, which only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// By bucket: the latest place, which is the position after the gram.
    pub(super) heads: Vec<u32>,
    /// By place modulo the length: the place before it in its bucket.
    pub(super) previous: Vec<u32>,
    /// Places below it are in.
    next: u32,
}

impl<'a> History<'a> {
    /// A prompt and the tokens drawn after it.
    pub fn new(prompt: &'a [u32], answer: &'a [u32]) -> Self {
        Self { prompt, answer }
    }

    /// Positions.
    pub fn len(&self) -> u32 {
        u32::try_from(self.prompt.len() + self.answer.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no id yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id at a position.
    pub fn get(&self, position: u32) -> Option<u32> {
        let position = position as usize;
        let answered = || self.answer.get(position - self.prompt.len());
        self.prompt.get(position).or_else(answered).copied()
    }

    /// The gram before a place.
    fn gram(&self, place: u32) -> Option<[u32; GRAM]> {
        let first = place.checked_sub(GRAM as u32)?;
        Some([self.get(first)?, self.get(first + 1)?, self.get(first + 2)?])
    }

    /// How many ids before one place equal those before a later one, up to [`LONGEST`].
    fn matching(&self, place: u32, later: u32) -> u32 {
        let equal = |&back: &u32| self.get(place - back) == self.get(later - back);
        (1..=place.min(LONGEST)).take_while(equal).count() as u32
    }
}

impl Lookup {
    /// Takes in what the history has gained.
    pub fn extend(&mut self, history: History<'_>) {
        self.grow(history.len());
        for place in self.next..history.len() {
            if let Some(bucket) = self.bucket(history, place) {
                let slot = place as usize % self.previous.len();
                self.previous[slot] = std::mem::replace(&mut self.heads[bucket], place);
            }
        }
        self.next = self.next.max(history.len());
    }

    /// Up to `most` ids that may follow a history that is taken in; none where its last [`GRAM`] ids are new.
    ///
    /// Of the latest places with the same last ids, it is the one with the longest match, of equals the latest. Where that is
    /// nearer to the end than `most`, the text is taken to go on repeating itself.
    pub fn propose(&self, history: History<'_>, most: u32) -> Vec<u32> {
        let end = history.len();
        let Some(distance) = self.distance(history) else { return Vec::new() };
        (0..most).map_while(|ahead| history.get(end - distance + ahead % distance)).collect()
    }

    /// From the best match to the end.
    fn distance(&self, history: History<'_>) -> Option<u32> {
        let end = history.len();
        let bucket = self.bucket(history, end)?;
        let (mut best, mut found) = (GRAM as u32 - 1, None);
        let mut place = *self.heads.get(bucket)?;
        for _ in 0..CANDIDATES {
            if !self.remembers(place) || place >= end {
                break;
            }
            let matching = history.matching(place, end);
            if matching > best {
                (best, found) = (matching, Some(end - place));
            }
            if matching == LONGEST {
                break;
            }
            place = self.previous[place as usize % self.previous.len()];
        }
        found
    }

    /// Whether a place's link is not overwritten by a later one's.
    fn remembers(&self, place: u32) -> bool {
        place != NONE && u64::from(place) + self.previous.len() as u64 >= u64::from(self.next)
    }

    /// The bucket of the gram before a place.
    pub(super) fn bucket(&self, history: History<'_>, place: u32) -> Option<usize> {
        // Multiplicative hashing, with 2^64 over the golden ratio (Knuth, The Art of Computer Programming, 6.4).
        let mix =
            |hash: u64, id: u32| (hash.rotate_left(21) ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let hash = history.gram(place)?.into_iter().fold(0, mix);
        // The high bits are the well mixed ones; the number of buckets is a power of two.
        Some((hash >> 32) as usize & self.heads.len().checked_sub(1)?)
    }

    /// Makes tables for a longer text, and takes it in anew: each id a bounded number of times, as they double.
    fn grow(&mut self, len: u32) {
        let size = (len as usize).clamp(LEAST, WINDOW).next_power_of_two();
        if size > self.heads.len() {
            *self = Self { heads: vec![NONE; size], previous: vec![NONE; size], next: 0 };
        }
    }
}
