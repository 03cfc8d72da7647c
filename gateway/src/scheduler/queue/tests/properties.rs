use proptest::prelude::*;

use super::*;

const SLOTS: usize = 4;
const LONGEST_PROMPT: u32 = 40;
const LONGEST_ANSWER: u32 = 60;

/// Serves a queue: a few sequences at once, a token of each at a time.
struct Server {
    queue: Queue,
    weights: Vec<u32>,
    /// (tenant, tokens left).
    running: Vec<(TenantId, u32)>,
    /// Prompt and answer tokens.
    served: BTreeMap<TenantId, u64>,
    admitted: Vec<SequenceId>,
    last: SequenceId,
}

impl Server {
    fn new(weights: Vec<u32>) -> Self {
        Self {
            queue: queue(10_000, u64::MAX, &weights),
            weights,
            running: Vec::new(),
            served: BTreeMap::new(),
            admitted: Vec::new(),
            last: 0,
        }
    }

    fn push(&mut self, tenant: u32, (prompt, answer): (u32, u32)) -> SequenceId {
        self.last += 1;
        self.queue.push(sequence(self.last, tenant, prompt, answer)).unwrap();
        self.last
    }

    /// Lets so many of each wait.
    fn fill(&mut self, tenants: std::ops::Range<u32>, count: u64, mut length: impl FnMut() -> (u32, u32)) {
        for tenant in tenants {
            while waiting(&self.queue, tenant) < count {
                self.push(tenant, length());
            }
        }
    }

    fn round(&mut self) {
        while self.running.len() < SLOTS
            && let Some((_, sequence)) = self.queue.pop()
        {
            *self.served.entry(sequence.tenant).or_default() += sequence.prompt.len() as u64;
            self.running.push((sequence.tenant, sequence.max_tokens));
            self.admitted.push(sequence.id);
        }
        for (tenant, left) in &mut self.running {
            self.queue.charge(*tenant, 1);
            *self.served.entry(*tenant).or_default() += 1;
            *left -= 1;
        }
        self.running.retain(|(_, left)| *left > 0);
    }

    /// Tokens for a weight of 1.
    fn share(&self, tenant: u32) -> f64 {
        let served = self.served.get(&TenantId(tenant)).copied().unwrap_or(0);
        served as f64 / f64::from(self.weights[tenant as usize])
    }

    /// What one admission, and all that can run then, may bring a tenant.
    fn lead(&self, tenant: u32) -> f64 {
        f64::from(LONGEST_PROMPT + SLOTS as u32 * LONGEST_ANSWER) / f64::from(self.weights[tenant as usize])
    }
}

fn length() -> impl Strategy<Value = (u32, u32)> {
    (1..=LONGEST_PROMPT, 1..=LONGEST_ANSWER)
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1u32..9, 2..5)
}

#[derive(Clone, Debug)]
enum Event {
    Push {
        tenant: u32,
        priority: i32,
        seconds: u64,
        prompt: u32,
    },
    Pop,
    /// The n-th of those that wait.
    Remove(usize),
    /// Those with longer prompts go.
    Retain(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u32..3, -3i32..4, 0u64..20, 1u32..30)
            .prop_map(|(tenant, priority, seconds, prompt)| Event::Push { tenant, priority, seconds, prompt }),
        4 => Just(Event::Pop),
        1 => (0usize..6).prop_map(Event::Remove),
        1 => (15u32..30).prop_map(Event::Retain),
    ]
}

/// The queue, and what it should hold.
struct World {
    queue: Queue,
    waiting: BTreeMap<SequenceId, NewSequence>,
    last: SequenceId,
    now: Duration,
    left: u64,
}

impl World {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Push { tenant, priority, seconds, prompt } => {
                self.last += 1;
                self.now += Duration::from_secs(seconds);
                let new =
                    NewSequence { priority, arrived: self.now, ..sequence(self.last, tenant, prompt, 5) };
                self.queue.push(new.clone()).unwrap();
                let again = self.queue.push(new.clone());
                assert_eq!(again, Err(Refusal::Duplicate { sequence: self.last }));
                self.waiting.insert(self.last, new);
            }
            Event::Pop => {
                let first = self.queue.first().map(|sequence| sequence.id);
                let popped = self.queue.pop().map(|(_, sequence)| sequence);
                assert_eq!(popped.as_ref().map(|sequence| sequence.id), first);
                if let Some(sequence) = popped {
                    self.leaves(sequence.id);
                    self.assert_nobody_waited_too_long(&sequence);
                }
            }
            Event::Remove(n) => {
                let id = self.waiting.keys().nth(n).copied().unwrap_or(0);
                assert_eq!(self.queue.remove(id), id > 0);
                if id > 0 {
                    self.leaves(id);
                }
            }
            Event::Retain(longest) => {
                let too_long = |sequence: &NewSequence| sequence.prompt.len() > longest as usize;
                let check = |sequence: &_| if too_long(sequence) { Err(Refusal::NoTokens) } else { Ok(()) };
                for (id, _) in self.queue.retain(check) {
                    self.leaves(id);
                }
                assert!(!self.waiting.values().any(too_long));
            }
        }
        let flow = Flow {
            waiting: self.waiting.len() as u32,
            waiting_tokens: self.waiting.values().map(tokens).sum(),
            left_tokens: self.left,
        };
        assert_eq!(self.queue.flow(), flow);
    }

    fn leaves(&mut self, id: SequenceId) {
        self.left += tokens(&self.waiting.remove(&id).unwrap());
    }

    /// Of the same tenant, nobody still waits who came earlier, but for those so much lower in priority.
    fn assert_nobody_waited_too_long(&self, admitted: &NewSequence) {
        for other in self.waiting.values().filter(|other| other.tenant == admitted.tenant) {
            let seconds = |sequence: &NewSequence| sequence.arrived.as_secs() as i64;
            let ahead = seconds(admitted) - seconds(other);
            let worth = 10 * i64::from(admitted.priority - other.priority);
            let is_later = ahead > worth || ahead == worth && admitted.id > other.id;
            assert!(!is_later, "{} went before {}", admitted.id, other.id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn tenants_that_all_wait_are_served_by_weight(
        weights in weights(),
        lengths in prop::collection::vec(length(), 1..40),
        rounds in 50usize..600,
    ) {
        let mut server = Server::new(weights.clone());
        let mut lengths = lengths.iter().copied().cycle();
        let tenants = 0..weights.len() as u32;
        for _ in 0..rounds {
            // So many that no slot is ever left without one of each to choose from.
            server.fill(tenants.clone(), SLOTS as u64 + 1, || lengths.next().unwrap());
            server.round();
            for (one, other) in tenants.clone().flat_map(|one| tenants.clone().map(move |other| (one, other))) {
                let ahead = server.share(one) - server.share(other);
                prop_assert!(ahead <= server.lead(one) + 1e-6, "{one} is {ahead} ahead of {other}");
            }
        }
    }

    #[test]
    fn no_tenant_starves_beside_others_that_never_stop(
        weights in weights(),
        lengths in prop::collection::vec(length(), 1..40),
        before in 0usize..200,
        wait in 1usize..5,
    ) {
        let mut server = Server::new(weights.clone());
        let mut lengths = lengths.iter().copied().cycle();
        let others = 1..weights.len() as u32;
        for _ in 0..before {
            server.fill(others.clone(), 20, || lengths.next().unwrap());
            server.round();
        }
        let wanted: Vec<_> = (0..wait).map(|_| server.push(0, (LONGEST_PROMPT, LONGEST_ANSWER))).collect();
        // Until the others are ahead by what these are worth; a round serves a token at least.
        let worth = f64::from(LONGEST_PROMPT + LONGEST_ANSWER) * wait as f64 / f64::from(weights[0]);
        let most: f64 = others.clone()
            .map(|other| (worth + server.lead(other)) * f64::from(weights[other as usize]))
            .sum();
        for _ in 0..most.ceil() as usize {
            server.fill(others.clone(), 20, || lengths.next().unwrap());
            server.round();
        }
        prop_assert!(wanted.iter().all(|id| server.admitted.contains(id)), "within {most} tokens of others");
    }

    #[test]
    fn what_waits_is_what_came_and_did_not_leave_and_nobody_is_overtaken_for_ever(
        events in prop::collection::vec(event(), 0..120),
    ) {
        let queue = queue(1000, 1_000_000, &[1, 2, 3]);
        let mut world = World { queue, waiting: BTreeMap::new(), last: 0, now: Duration::ZERO, left: 0 };
        for event in events {
            world.apply(event);
        }
        while !world.waiting.is_empty() {
            world.apply(Event::Pop);
        }
        prop_assert!(world.queue.lines.is_empty() && world.queue.turns.is_empty());
    }

    #[test]
    fn a_tenant_finds_its_part_of_the_queue_free(
        weights in weights(),
        pushes in prop::collection::vec((0u32..4, 1u32..30), 0..80),
    ) {
        let (requests, limit) = (24, 600);
        let mut queue = queue(requests, limit, &weights);
        let all: u32 = weights.iter().sum();
        for (id, (tenant, prompt)) in (1..).zip(pushes) {
            let tenant = tenant % weights.len() as u32;
            let own = waiting(&queue, tenant) as u32;
            match queue.push(sequence(id, tenant, prompt, 1)) {
                Ok(()) => {}
                Err(Refusal::QueueFull { .. }) => {
                    prop_assert!(own >= requests / 2 * weights[tenant as usize] / all, "{own} of tenant {tenant}");
                }
                Err(Refusal::QueueTokens { waiting, tokens, limit }) => {
                    prop_assert!(own > 0 && waiting + tokens > limit);
                }
                Err(other) => panic!("{other}"),
            }
            prop_assert!(queue.len() <= requests);
            // One sequence of each may come in although there is no room.
            prop_assert!(queue.tokens() <= limit + 30 * weights.len() as u64);
        }
    }
}
