//! What a stage knows of the sequences of an epoch. Pure.
//!
//! Every stage keeps a sequence's block table and how far it has come. The last stage also keeps its token ids by position, for
//! penalties, and which slots hold its raw rows of logits.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;

use crate::setting::Setting;

/// What a stage has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Token ids of the model.
    pub vocab: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
    /// Blocks of KV.
    pub kv_blocks: usize,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Raw rows that can be kept; `None` but on the last stage.
    pub logits_slots: Option<usize>,
}

/// What is known by an id that the driver gave. Looked up some times for every row.
type ById<T> = HashMap<u64, T, RandomState>;

/// The sequences of an epoch.
#[derive(Debug)]
pub struct Sequences {
    pub(crate) room: Room,
    pub(crate) epoch: u64,
    /// The latest step that was applied.
    pub(crate) step: u64,
    pub(crate) by_id: ById<Sequence>,
    settings: ById<Weak<Setting>>,
    free_slots: Vec<usize>,
}

/// One sequence.
#[derive(Debug)]
pub struct Sequence {
    /// Of the original prompt.
    pub prompt_len: usize,
    /// Its block table.
    pub blocks: Vec<u32>,
    /// Positions below it have been fed.
    pub end: usize,
    /// Ids of the positions `ids_from..end`; empty but on the last stage.
    ids: Vec<u32>,
    ids_from: usize,
    /// As named in its start: what keeps a setting from being forgotten.
    _setting: Option<Arc<Setting>>,
    kept: Vec<Kept>,
}

/// A raw row of logits that is kept until its sequence goes on or ends.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The step that computed it.
    pub step: u64,
    /// The row's position.
    pub position: usize,
    /// Where it is.
    pub slot: usize,
    /// How it is processed.
    pub setting: Arc<Setting>,
}

/// A setting id means another setting already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingTaken;

impl Sequences {
    /// None yet.
    pub fn new(epoch: u64, room: Room) -> Self {
        let free_slots = (0..room.logits_slots.unwrap_or(0)).rev().collect();
        Self { room, epoch, step: 0, by_id: ById::default(), settings: ById::default(), free_slots }
    }

    /// A sequence that lives.
    pub fn get(&self, sequence: u64) -> Option<&Sequence> {
        self.by_id.get(&sequence)
    }

    /// Whether this is the last stage.
    pub(crate) fn is_last(&self) -> bool {
        self.room.logits_slots.is_some()
    }

    /// A row that is kept.
    pub fn kept(&self, step: u64, sequence: u64, position: usize) -> Option<&Kept> {
        let mut kept = self.by_id.get(&sequence)?.kept.iter();
        kept.find(|kept| kept.position == position && kept.step == step)
    }

    /// Forgets a sequence; `false` if there is none.
    pub(crate) fn end(&mut self, sequence: u64) -> bool {
        let Some(ended) = self.by_id.remove(&sequence) else { return false };
        self.free_slots.extend(ended.kept.iter().map(|kept| kept.slot));
        true
    }

    /// Forgets settings that no sequence names any more.
    pub(crate) fn forget_settings(&mut self) {
        self.settings.retain(|_, setting| setting.strong_count() > 0);
    }

    /// The setting that `id` stands for.
    pub(crate) fn setting(&self, id: u64) -> Option<Arc<Setting>> {
        self.settings.get(&id)?.upgrade()
    }

    /// Lets `id` stand for `setting`. The same again is fine.
    pub(crate) fn name_setting(&mut self, id: u64, setting: Setting) -> Result<Arc<Setting>, SettingTaken> {
        match self.setting(id) {
            Some(known) if *known == setting => Ok(known),
            Some(_) => Err(SettingTaken),
            None => {
                let setting = Arc::new(setting);
                self.settings.insert(id, Arc::downgrade(&setting));
                Ok(setting)
            }
        }
    }

    /// Gives back the slots of a sequence that goes on.
    pub(crate) fn release_slots(&mut self, sequence: u64) {
        if let Some(sequence) = self.by_id.get_mut(&sequence) {
            self.free_slots.extend(sequence.kept.drain(..).map(|kept| kept.slot));
        }
    }

    /// Takes a slot for the row at `position` of the present step; `None` if all are taken.
    pub(crate) fn keep(&mut self, sequence: u64, position: usize, setting: Arc<Setting>) -> Option<usize> {
        let owner = self.by_id.get_mut(&sequence)?;
        let slot = self.free_slots.pop()?;
        owner.kept.push(Kept { step: self.step, position, slot, setting });
        Some(slot)
    }

    /// Slots that hold nothing.
    #[cfg(test)]
    pub(crate) fn free_slots(&self) -> usize {
        self.free_slots.len()
    }
}

impl Sequence {
    /// A sequence whose first span begins at `first`, after the ids `prior` if they were told.
    pub(crate) fn starting(
        prompt_len: usize,
        first: usize,
        prior: Vec<u32>,
        setting: Option<Arc<Setting>>,
    ) -> Self {
        let ids_from = if prior.len() == first { 0 } else { first };
        let ids = if ids_from == 0 { prior } else { Vec::new() };
        Self {
            prompt_len,
            blocks: Vec::new(),
            end: first,
            ids,
            ids_from,
            _setting: setting,
            kept: Vec::new(),
        }
    }

    /// Drops all ids from position `first` on and appends `ids` there.
    pub(crate) fn feed(&mut self, first: usize, ids: &[u32]) {
        if first < self.ids_from {
            self.ids_from = first;
        }
        self.ids.truncate(first - self.ids_from);
        self.ids.extend_from_slice(ids);
    }

    /// The ids of positions 0 to `position`, if all are known.
    pub fn context(&self, position: usize) -> Option<&[u32]> {
        if self.ids_from == 0 { self.ids.get(..=position) } else { None }
    }
}
