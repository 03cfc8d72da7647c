//! The pool and its index against a model that writes down what every row of every block holds.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::blocks::{Block, BlockPool};
use super::super::prefix::{Before, Content};
use super::shards::{Row, row_of};
use super::*;

const ROWS: usize = BLOCK_ROWS as usize;

/// With ropes that change within a test's few blocks.
const KINDS: RowKinds = RowKinds { rope_base_length: 32, have_classes: true };

/// A sequence as far as its blocks are concerned.
#[derive(Debug)]
struct Holder {
    tenant: TenantId,
    ids: Vec<u32>,
    prompt_len: u32,
    blocks: Vec<Block>,
    fed: usize,
    shared: u32,
}

/// Blocks, what their rows hold, and who holds them.
struct World {
    count: u32,
    pool: BlockPool,
    rows: Vec<Vec<Row>>,
    holders: Vec<Holder>,
}

impl Holder {
    fn new(tenant: u32, ids: &[u32], prompt_len: u32) -> Self {
        let tenant = TenantId(tenant);
        Self { tenant, ids: ids.to_vec(), prompt_len, blocks: Vec::new(), fed: 0, shared: 0 }
    }

    /// What one of its blocks holds.
    fn content(&self, index: u32) -> Option<Content> {
        content(&self.ids[..self.fed], index, self.prompt_len, &KINDS)
    }

    fn row(&self, position: usize) -> Row {
        row_of(self.tenant, &self.ids, position, self.prompt_len, &KINDS)
    }
}

fn content(ids: &[u32], index: u32, prompt_len: u32, kinds: &RowKinds) -> Option<Content> {
    let (blocks, _) = ids.as_chunks();
    Some(Content::new(*blocks.get(index as usize)?, index, prompt_len, kinds))
}

/// Holds the longest prefix that is in the index.
fn find(pool: &BlockPool, tenant: TenantId, contents: impl IntoIterator<Item = Content>) -> Vec<Block> {
    let mut before = Before::Nothing(tenant);
    let find = |content| {
        let block = pool.find(before, content)?;
        before = Before::Block(block.id());
        Some(block)
    };
    contents.into_iter().map_while(find).collect()
}

/// What such a sequence may find: all blocks but that of its last row.
fn wanted(ids: &[u32], prompt_len: u32) -> impl Iterator<Item = Content> {
    let most = (ids.len() - 1) / ROWS;
    (0..).map_while(move |index| content(ids, index, prompt_len, &KINDS)).take(most)
}

impl World {
    fn new(count: u32) -> Self {
        let rows = vec![Vec::new(); count as usize];
        Self { count, pool: BlockPool::new(count), rows, holders: Vec::new() }
    }

    /// A sequence begins with what it finds; returns how many blocks that were.
    fn begin(&mut self, mut holder: Holder) -> usize {
        holder.blocks = find(&self.pool, holder.tenant, wanted(&holder.ids, holder.prompt_len));
        for (index, block) in holder.blocks.iter().enumerate() {
            let expected: Vec<_> =
                (index * ROWS..(index + 1) * ROWS).map(|position| holder.row(position)).collect();
            assert_eq!(self.rows[block.id() as usize], expected, "what was found is what is wanted");
        }
        holder.fed = holder.blocks.len() * ROWS;
        holder.shared = holder.blocks.len() as u32;
        assert!(holder.fed < holder.ids.len(), "the last row is always computed");
        self.holders.push(holder);
        self.holders.last().map_or(0, |holder| holder.blocks.len())
    }

    /// Feeds all rows that are known, as far as there are blocks; those that are full are shared.
    fn feed(&mut self, index: usize) {
        let Some(mut holder) = (index < self.holders.len()).then(|| self.holders.remove(index)) else {
            return;
        };
        for position in holder.fed..holder.ids.len() {
            if position / ROWS == holder.blocks.len() {
                let Some(block) = self.pool.take() else { break };
                self.rows[block.id() as usize].clear();
                holder.blocks.push(block);
            }
            let block = holder.blocks[position / ROWS].id();
            let elsewhere = self.holders.iter().flat_map(|other| &other.blocks);
            assert!(elsewhere.clone().all(|other| other.id() != block), "nobody else holds what is written");
            let rows = &mut self.rows[block as usize];
            assert_eq!(rows.len(), position % ROWS, "no row is written twice");
            rows.push(holder.row(position));
            holder.fed = position + 1;
        }
        while let Some(content) = holder.content(holder.shared) {
            let index = holder.shared as usize;
            let before = match index {
                0 => Before::Nothing(holder.tenant),
                _ => Before::Block(holder.blocks[index - 1].id()),
            };
            let own = holder.blocks[index].id();
            let is_another = self.pool.share(before, content, &mut holder.blocks[index]);
            let block = holder.blocks[index].id();
            assert_eq!(is_another, block != own);
            assert_eq!(self.rows[block as usize], self.rows[own as usize], "the same rows");
            holder.shared += 1;
        }
        self.holders.insert(index, holder);
    }

    fn check(&self) {
        let held: BTreeSet<_> =
            self.holders.iter().flat_map(|holder| &holder.blocks).map(Block::id).collect();
        assert_eq!(self.pool.free() + held.len() as u32, self.count, "no block is lost or counted twice");
        assert!(self.pool.cached() <= self.count);
    }
}

#[derive(Clone, Debug)]
enum Event {
    Begin {
        tenant: u32,
        story: u32,
        len: u32,
        prompt_len: u32,
    },
    Feed(usize),
    /// The n-th gets more tokens.
    Grow(usize, u32),
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u32..2, 0u32..3, 1u32..100, 1u32..100).prop_map(|(tenant, story, len, prompt_len)| Event::Begin {
            tenant,
            story,
            len,
            prompt_len: prompt_len.min(len),
        }),
        // Often the same again.
        4 => (0u32..2, Just(100u32)).prop_map(|(story, len)| Event::Begin { tenant: 0, story, len, prompt_len: len }),
        8 => (0usize..6).prop_map(Event::Feed),
        3 => (0usize..6, 1u32..20).prop_map(|(index, more)| Event::Grow(index, more)),
        4 => (0usize..6).prop_map(Event::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn only_what_was_fed_is_found_and_nothing_leaks(
        count in 1u32..24,
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(count);
        for event in events {
            match event {
                Event::Begin { tenant, story: name, len, prompt_len } if world.holders.len() < 6 => {
                    world.begin(Holder::new(tenant, &story(name, len), prompt_len));
                }
                Event::Begin { .. } => {}
                Event::Feed(index) => world.feed(index),
                Event::Grow(index, more) => {
                    if let Some(holder) = world.holders.get_mut(index) {
                        let len = holder.ids.len() as u32;
                        holder.ids = [&holder.ids[..], &story(more % 3, len + more)[len as usize..]].concat();
                    }
                }
                Event::End(index) => drop((index < world.holders.len()).then(|| world.holders.remove(index))),
            }
            world.check();
        }
        world.holders.clear();
        prop_assert_eq!(world.pool.free(), count, "all can be taken");
        let all: Vec<_> = std::iter::from_fn(|| world.pool.take()).collect();
        prop_assert_eq!(all.len(), count as usize, "and each once");
        prop_assert_eq!(world.pool.cached(), 0);
    }

    #[test]
    fn what_one_has_fed_the_next_finds_up_to_its_last_row(len in 1u32..100, again in 1u32..100) {
        let mut world = World::new(32);
        world.begin(Holder::new(0, &story(1, len), len));
        world.feed(0);
        world.holders.clear();
        let next = Holder::new(0, &story(1, again), again);
        // Prompts that end under the same rope; classes are equal in both.
        let same_rope = next.row(0) == Holder::new(0, &story(1, len), len).row(0);
        let expected = if same_rope { (len / BLOCK_ROWS).min((again - 1) / BLOCK_ROWS) } else { 0 };
        prop_assert_eq!(world.begin(next) as u32, expected);
    }
}

#[test]
fn an_answer_is_found_by_the_turn_after_it_but_for_its_class() {
    for (have_classes, expected) in [(false, 3), (true, 1)] {
        let kinds = RowKinds { rope_base_length: 0, have_classes };
        let pool = BlockPool::new(8);
        let ids = story(0, 64);
        let contents =
            |prompt_len| (0..).map_while(move |index| content(&story(0, 64), index, prompt_len, &kinds));
        let mut before = Before::Nothing(TenantId(0));
        // A prompt of 20 and an answer of 44.
        let mut held = Vec::new();
        for content in contents(20) {
            let mut block = pool.take().unwrap();
            assert!(!pool.share(before, content, &mut block));
            before = Before::Block(block.id());
            held.push(block);
        }
        drop(held);
        let most = (ids.len() - 1) / ROWS;
        assert_eq!(
            find(&pool, TenantId(0), contents(64).take(most)).len(),
            expected,
            "classes: {have_classes}"
        );
    }
}

#[test]
fn tenants_share_nothing() {
    let mut world = World::new(8);
    world.begin(Holder::new(1, &story(0, 32), 32));
    world.feed(0);
    assert_eq!(world.begin(Holder::new(2, &story(0, 32), 32)), 0);
    assert_eq!(world.begin(Holder::new(1, &story(0, 32), 32)), 1);
}

#[test]
fn two_that_compute_the_same_hold_the_same_block_from_then_on() {
    let mut world = World::new(8);
    for _ in 0..2 {
        world.begin(Holder::new(0, &story(0, 20), 20));
    }
    world.feed(0);
    world.feed(1);
    let [first, second] = &world.holders[..] else { panic!("two") };
    assert_eq!(first.blocks[0].id(), second.blocks[0].id());
    assert_eq!(world.pool.free(), 5, "one block for both, and the rest of each");
    world.check();
}

#[test]
fn what_was_given_back_longest_ago_leaves_first_from_its_end_on() {
    let mut world = World::new(6);
    for name in [1, 2] {
        world.begin(Holder::new(0, &story(name, 64), 64));
        world.feed(0);
        world.holders.clear();
    }
    assert_eq!((world.pool.free(), world.pool.cached()), (6, 6), "two blocks of both, two of each");
    let longest = |world: &World, name| find(&world.pool, TenantId(0), wanted(&story(name, 65), 64)).len();
    assert_eq!((longest(&world, 2), longest(&world, 1)), (4, 4));
    let mut taken = Vec::new();
    for expected in [(3, 4), (2, 4), (2, 3), (2, 2), (1, 1), (0, 0)] {
        taken.push(world.pool.take().unwrap());
        // (Asked in this order, the first story stays the less recent.)
        assert_eq!((longest(&world, 2), longest(&world, 1)), expected);
    }
    assert!(world.pool.take().is_none());
}

#[test]
fn what_somebody_holds_never_leaves() {
    let mut world = World::new(4);
    world.begin(Holder::new(0, &story(0, 48), 48));
    world.feed(0);
    let others: Vec<_> = std::iter::from_fn(|| world.pool.take()).collect();
    assert_eq!((others.len(), world.pool.free()), (1, 0));
    world.begin(Holder::new(0, &story(0, 48), 48));
    assert_eq!(world.holders[1].blocks.len(), 2, "held by two");
    world.holders.remove(0);
    assert_eq!(world.pool.free(), 1, "the last of the first alone");
}
