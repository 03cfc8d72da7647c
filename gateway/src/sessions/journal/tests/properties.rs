//! Random scripts against a plain map.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    /// So many more tokens for each of these turns, in one change each.
    Append(Vec<(u128, usize)>),
    /// The last tokens of a turn once more.
    Repeat(u128),
    Stop(u128),
    Forget(u128),
    /// The syncing thread takes work, and may take long.
    TakeWork,
    /// It is done.
    Sync,
    Faults(Faults),
    /// The process is killed some time later.
    Die(Death),
    Kill,
    PowerCut,
}

fn event() -> impl Strategy<Value = Event> {
    let turns = || 0u128..6;
    prop_oneof![
        12 => proptest::collection::vec((turns(), 1usize..40), 1..4).prop_map(Event::Append),
        1 => turns().prop_map(Event::Repeat),
        2 => turns().prop_map(Event::Stop),
        3 => turns().prop_map(Event::Forget),
        3 => Just(Event::TakeWork),
        5 => Just(Event::Sync),
        2 => faults().prop_map(Event::Faults),
        2 => Just(Event::Faults(Faults::default())),
        1 => (0usize..8, 0usize..600).prop_map(|(after, torn)| Event::Die(Death { after, torn })),
        1 => Just(Event::Kill),
        1 => Just(Event::PowerCut),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let space = proptest::option::of(0usize..400);
    (space, any::<[bool; 4]>()).prop_map(|(space, [truncate, sync, sync_folder, remove])| {
        // Mostly one thing after another.
        Faults { space, truncate, sync: sync && !truncate, sync_folder: sync_folder && !sync, remove }
    })
}

/// The journal and what should be in it.
struct Run {
    disk: MemoryDisk,
    opened: Opened,
    segment_bytes: u64,
    seed: u64,
    faults: Faults,
    /// What was answered, and not forgotten.
    answered: Turns,
    /// What was answered and is on the disk.
    durable: Turns,
    /// What was answered when the syncing thread took its work.
    taken: Option<(super::super::syncing::Work, Turns)>,
    /// What turns had at most, answered or not; several where one was forgotten and begun again.
    ever: BTreeMap<TurnId, Vec<KeptTurn>>,
    /// What was being written when the process was killed.
    under_way: Option<Turns>,
    /// Whether a sync failed of which no change was told.
    sync_failed: bool,
    next_token: u32,
}

impl Run {
    fn new(segment_bytes: u64, seed: u64) -> Self {
        let disk = MemoryDisk::default();
        let (opened, _) = Opened::new(&disk, segment_bytes).unwrap();
        Self {
            disk,
            opened,
            segment_bytes,
            seed,
            faults: Faults::default(),
            answered: Turns::new(),
            durable: Turns::new(),
            taken: None,
            ever: BTreeMap::new(),
            under_way: None,
            sync_failed: false,
            next_token: 0,
        }
    }

    fn choose(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Append(added) => self.append(&added),
            Event::Repeat(number) => {
                let has = self.answered.get(&turn(number)).cloned().unwrap_or_default().token_ids;
                let first = has.len() / 2;
                let again = tokens(turn(number), first as u32, &has[first..]);
                self.write(vec![again], self.answered.clone());
            }
            Event::Stop(number) => {
                let mut after = self.answered.clone();
                after.entry(turn(number)).or_default().stop = true;
                self.write(vec![Change::Stop(turn(number))], after);
            }
            Event::Forget(number) => {
                self.opened.log.forget(turn(number));
                self.answered.remove(&turn(number));
                self.durable.remove(&turn(number));
                if let Some((_, taken)) = &mut self.taken {
                    taken.remove(&turn(number));
                }
            }
            Event::TakeWork => {
                if self.taken.is_none() {
                    self.taken = self.opened.syncing.take_work().map(|work| (work, self.answered.clone()));
                }
            }
            Event::Sync => {
                self.happens(Event::TakeWork);
                let Some((work, answered)) = self.taken.take() else { return };
                match self.opened.syncer.sync(&work) {
                    Ok(()) => self.durable = answered,
                    Err(failure) => self.sync_failed |= self.opened.syncing.fail(&work, failure),
                }
            }
            Event::Faults(faults) => {
                self.faults = faults.clone();
                self.disk.set_faults(faults);
            }
            Event::Die(death) => self.disk.die(death),
            Event::Kill => self.reopen_after_kill(),
            Event::PowerCut => self.reopen_after_power_cut(),
        }
        if self.disk.is_dead() {
            match self.choose(2) {
                0 => self.reopen_after_kill(),
                _ => self.reopen_after_power_cut(),
            }
        }
    }

    fn append(&mut self, added: &[(u128, usize)]) {
        let mut after = self.answered.clone();
        let mut changes = Vec::new();
        for &(number, count) in added {
            let kept = after.entry(turn(number)).or_default();
            let first = kept.token_ids.len();
            kept.token_ids.extend(self.next_token..self.next_token + count as u32);
            self.next_token += count as u32;
            changes.push(tokens(turn(number), first as u32, &kept.token_ids[first..]));
        }
        self.write(changes, after);
    }

    /// Writes changes that make what is answered `after`.
    fn write(&mut self, changes: Vec<Change>, after: Turns) {
        let results = self.opened.log.write(&changes);
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "they share one record");
        match &results[0] {
            Ok(()) => self.answered = after,
            Err(_) if self.disk.is_dead() => self.under_way = Some(after),
            Err(JournalError::Sync { .. }) => assert!(self.sync_failed, "no sync failed"),
            Err(JournalError::Write { .. }) => {
                assert!(self.faults.space.is_some() || self.faults.sync_folder, "nothing fails");
            }
            Err(error) => panic!("{error}"),
        }
        if !self.disk.is_dead() {
            let is_told = matches!(results[0], Err(JournalError::Sync { .. }));
            assert!(is_told || !self.sync_failed, "a failed sync was swallowed");
            self.sync_failed = false;
        }
        for (turn, kept) in self.answered.iter().chain(self.under_way.iter().flatten()) {
            let ever = self.ever.entry(*turn).or_default();
            match ever.last_mut().filter(|last| kept.token_ids.starts_with(&last.token_ids)) {
                Some(last) => {
                    last.token_ids.clone_from(&kept.token_ids);
                    last.stop |= kept.stop;
                }
                None => ever.push(kept.clone()),
            }
        }
    }

    fn reopen_after_kill(&mut self) {
        self.disk = self.disk.after_kill();
        let found = self.reopen();
        let is_all = |all: &Turns| all.iter().all(|(turn, kept)| found.get(turn) == Some(kept));
        let under_way = self.under_way.take();
        assert!(
            is_all(&self.answered) || under_way.as_ref().is_some_and(is_all),
            "{found:?} has not all of {:?}, or of {under_way:?}",
            self.answered
        );
        self.durable.retain(|turn, _| found.contains_key(turn));
        self.go_on(found);
    }

    fn reopen_after_power_cut(&mut self) {
        let disk = self.disk.clone();
        self.disk = disk.after_power_cut(&mut |below| self.choose(below));
        let found = self.reopen();
        for (turn, kept) in &self.durable {
            let has = found.get(turn).unwrap_or_else(|| panic!("{turn} was on the disk"));
            assert!(has.token_ids.starts_with(&kept.token_ids), "{turn} had more on the disk");
            assert!(has.stop || !kept.stop, "the stop of {turn} was on the disk");
        }
        self.under_way = None;
        self.durable = found.clone();
        self.go_on(found);
        self.ever = self.answered.iter().map(|(turn, kept)| (*turn, vec![kept.clone()])).collect();
    }

    fn reopen(&mut self) -> Turns {
        let (opened, found) = Opened::new(&self.disk, self.segment_bytes).unwrap();
        self.opened = opened;
        found
    }

    /// Goes on with what was found, which is never wrong.
    fn go_on(&mut self, found: Turns) {
        for (turn, kept) in &found {
            let is_part =
                |ever: &KeptTurn| ever.token_ids.starts_with(&kept.token_ids) && (ever.stop || !kept.stop);
            assert!(self.ever.get(turn).is_some_and(|ever| ever.iter().any(is_part)), "{turn}: {kept:?}");
        }
        self.answered = found;
        self.taken = None;
        self.sync_failed = false;
        self.faults = Faults::default();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_was_answered_outlives_a_kill_and_what_was_synced_a_power_cut(
        segment_bytes in prop_oneof![Just(1u64), 50u64..3000],
        seed in any::<u64>(),
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let mut run = Run::new(segment_bytes, seed);
        for event in events {
            run.happens(event);
        }
        run.happens(Event::Kill);
    }

    #[test]
    fn what_is_kept_is_bounded_by_what_lives(lengths in proptest::collection::vec(1u32..60, 1..300)) {
        let disk = MemoryDisk::default();
        let (mut opened, _) = Opened::new(&disk, 2000).unwrap();
        let old = turn(0);
        let mut first = 0;
        for (number, length) in (1..).zip(lengths) {
            // A turn that lives long beside many that come and go.
            let ids: Vec<u32> = (0..length).collect();
            opened.write(tokens(old, first, &[number as u32])).unwrap();
            first += 1;
            opened.write(tokens(turn(number), 0, &ids)).unwrap();
            opened.log.forget(turn(number));
            prop_assert!(opened.sync());
            let files = disk.files();
            prop_assert_eq!(files.len(), 1);
            let live = (4 * first + 4 * length + 100) as usize;
            let bytes = files.values().map(Vec::len).sum::<usize>();
            prop_assert!(bytes < 2500 + 6 * live, "{} bytes for {} that live", bytes, live);
        }
    }
}
