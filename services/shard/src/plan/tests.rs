use asterism_proto::shard::v1::{Setting as WireSetting, TokenBias};
use proptest::prelude::*;

use super::*;
use crate::sequences::Room;

const ROOM: Room =
    Room { vocab: 100, max_context: 64, kv_blocks: 8, max_rows: 40, evidence_rows: 4, logits_slots: Some(3) };

fn last_stage() -> Sequences {
    Sequences::new(7, ROOM)
}

fn setting(id: u64) -> WireSetting {
    WireSetting { id, repetition_penalty: 1.0, ..WireSetting::default() }
}

fn start() -> Option<SequenceStart> {
    Some(SequenceStart { prompt_len: 20, setting: Some(setting(1)), prior_ids: Vec::new() })
}

/// The first span of sequence 1: positions 0 to 19, evidence of the last, blocks 4 and 2.
fn first() -> Span {
    Span {
        sequence: 1,
        first_position: 0,
        token_ids: (0..20).collect(),
        table_offset: 0,
        blocks: vec![4, 2],
        evidence_positions: vec![19],
        top_k: 5,
        setting_id: 1,
        start: start(),
    }
}

/// The span after it: one row.
fn next() -> Span {
    Span {
        first_position: 20,
        token_ids: vec![9],
        blocks: Vec::new(),
        evidence_positions: vec![20],
        start: None,
        ..first()
    }
}

fn plan(step: u64, spans: Vec<Span>) -> StepPlan {
    StepPlan { epoch: 7, step, ended: Vec::new(), spans, traceparent: String::new() }
}

fn apply(sequences: &mut Sequences, spans: Vec<Span>) -> Result<Step, PlanRefusal> {
    sequences.apply(plan(sequences.step + 1, spans))
}

/// What a plan of this one span is refused with, after sequence 1 has started.
#[track_caller]
fn refused(span: Span) -> SpanRefusal {
    let mut sequences = last_stage();
    apply(&mut sequences, vec![first()]).expect("a good plan");
    match apply(&mut sequences, vec![span.clone()]) {
        Err(PlanRefusal::Span { span: 0, sequence, why }) if sequence == span.sequence => why,
        other => panic!("{span:?} gave {other:?}"),
    }
}

#[test]
fn a_good_plan_becomes_a_step() {
    let mut sequences = last_stage();
    let step = apply(&mut sequences, vec![first()]).expect("a good plan");
    assert_eq!((step.id, step.rows()), (1, 20));
    let span = &step.spans[0];
    assert_eq!((span.evidence.as_slice(), span.top_k, span.slots.len()), ([19].as_slice(), 5, 1));
    assert!(span.setting.as_ref().is_some_and(|setting| setting.processors(&[], 0).is_plain()));
    let sequence = sequences.get(1).expect("started");
    assert_eq!((sequence.prompt_len, sequence.end, sequence.blocks.as_slice()), (20, 20, [4, 2].as_slice()));
    assert_eq!(sequence.context(19).map(<[u32]>::len), Some(20));
    assert_eq!(sequence.context(20), None, "not fed yet");
}

#[test]
fn every_wrong_span_has_its_own_refusal() {
    let new = || Span { sequence: 2, blocks: vec![0, 1], ..first() };
    let started = |start: SequenceStart| Span { start: Some(start), ..new() };
    let right = || start().expect("a start");
    let with = |wire| started(SequenceStart { setting: Some(wire), ..right() });

    assert_eq!(refused(Span { token_ids: vec![], evidence_positions: vec![], ..next() }), SpanRefusal::Empty);
    assert_eq!(refused(Span { sequence: 2, ..next() }), SpanRefusal::NotStarted);
    assert_eq!(refused(first()), SpanRefusal::StartedBefore);
    for prompt_len in [0, 65, u32::MAX] {
        let wrong = SpanRefusal::PromptLen { prompt_len: prompt_len as usize, most: 64 };
        assert_eq!(refused(started(SequenceStart { prompt_len, ..right() })), wrong);
    }
    let far = |first_position| Span { first_position, evidence_positions: vec![], ..next() };
    assert_eq!(refused(far(64)), SpanRefusal::Position { position: 64, context: 64 });
    assert_eq!(refused(far(u32::MAX)), SpanRefusal::Position { position: u32::MAX as usize, context: 64 });
    assert_eq!(refused(far(21)), SpanRefusal::Gap { first: 21, end: 20 });
    assert_eq!(
        refused(Span { token_ids: vec![100], ..next() }),
        SpanRefusal::TokenId { id: 100, vocab: 100 }
    );
    let table = |table_offset, blocks| Span { table_offset, blocks, ..next() };
    assert_eq!(refused(table(3, vec![1])), SpanRefusal::TableOffset { offset: 3, blocks: 2 });
    assert_eq!(refused(table(2, vec![8])), SpanRefusal::Block { block: 8, blocks: 8 });
    assert_eq!(refused(table(0, vec![1])), SpanRefusal::Table { blocks: 1, positions: 21, most: 4 });
    assert_eq!(refused(table(2, vec![1; 3])), SpanRefusal::Table { blocks: 5, positions: 21, most: 4 });
    assert_eq!(refused(Span { blocks: vec![3, 3], ..new() }), SpanRefusal::WrittenTwice { block: 3 });
    for position in [19, 21] {
        let wrong = SpanRefusal::Evidence { position: position as usize };
        assert_eq!(refused(Span { evidence_positions: vec![position], ..next() }), wrong);
    }
    assert_eq!(
        refused(Span { evidence_positions: vec![5, 5], ..new() }),
        SpanRefusal::Evidence { position: 5 }
    );
    assert_eq!(
        refused(Span { evidence_positions: vec![5, 4], ..new() }),
        SpanRefusal::Evidence { position: 4 }
    );
    for top_k in [0, 1025] {
        assert_eq!(refused(Span { top_k, ..next() }), SpanRefusal::TopK { top_k });
    }
    assert_eq!(refused(Span { setting_id: 3, ..next() }), SpanRefusal::UnknownSetting { id: 3 });
    let other = WireSetting { temperature: Some(1.0), ..setting(1) };
    assert_eq!(refused(with(other)), SpanRefusal::SettingTaken { id: 1 });
    let biased = WireSetting { bias: vec![TokenBias { token_id: 100, bias: 1.0 }], ..setting(2) };
    assert!(matches!(refused(with(biased)), SpanRefusal::Setting(error) if error.field == "bias"));
    let prior = |prior_ids| Span {
        first_position: 2,
        token_ids: vec![1; 18],
        ..started(SequenceStart { prior_ids, ..right() })
    };
    assert_eq!(refused(prior(vec![1])), SpanRefusal::PriorLen { found: 1, first: 2 });
    assert_eq!(refused(prior(vec![1, 100])), SpanRefusal::TokenId { id: 100, vocab: 100 });
    let penalized = WireSetting { presence_penalty: 0.5, ..setting(2) };
    let start = SequenceStart { setting: Some(penalized), ..right() };
    let cached = Span { first_position: 2, token_ids: vec![1; 18], setting_id: 2, ..started(start) };
    assert_eq!(refused(cached), SpanRefusal::PriorIds { first: 2 });
}

#[test]
fn every_wrong_plan_has_its_own_refusal() {
    let mut sequences = last_stage();
    let foreign = StepPlan { epoch: 6, ..plan(1, vec![]) };
    assert_eq!(sequences.apply(foreign).unwrap_err(), PlanRefusal::Epoch { found: 6, epoch: 7 });
    for found in [0, 2, u64::MAX] {
        assert_eq!(
            sequences.apply(plan(found, vec![])).unwrap_err(),
            PlanRefusal::Order { found, expected: 1 }
        );
    }
    let ended = StepPlan { ended: vec![1], ..plan(1, vec![]) };
    assert_eq!(sequences.apply(ended).unwrap_err(), PlanRefusal::UnknownEnd { sequence: 1 });

    let refused = |spans| apply(&mut last_stage(), spans).expect_err("a bad plan");
    let wide = Span { token_ids: vec![0; 41], evidence_positions: vec![], ..first() };
    assert_eq!(refused(vec![wide]), PlanRefusal::Rows { rows: 41, most: 40 });
    let asking =
        |positions: std::ops::Range<u32>| Span { evidence_positions: positions.collect(), ..first() };
    assert_eq!(refused(vec![asking(0..5)]), PlanRefusal::EvidenceRows { rows: 5, most: 4 });
    assert_eq!(refused(vec![asking(0..4)]), PlanRefusal::LogitsSlots { slots: 3 });
    let twice = PlanRefusal::Span { span: 1, sequence: 1, why: SpanRefusal::Twice };
    assert_eq!(refused(vec![first(), next()]), twice);
    let tiny = |sequence| Span {
        sequence,
        token_ids: vec![1],
        blocks: vec![sequence as u32 % 8],
        evidence_positions: vec![],
        ..first()
    };
    let many = (0..9).map(tiny).collect();
    assert_eq!(refused(many), PlanRefusal::Sequences { sequences: 9, most: 8 });
    let shared = vec![first(), Span { sequence: 2, ..first() }];
    let why = SpanRefusal::WrittenTwice { block: 4 };
    assert_eq!(refused(shared), PlanRefusal::Span { span: 1, sequence: 2, why });
}

#[test]
fn ends_apply_first_and_free_everything() {
    let mut sequences = last_stage();
    apply(&mut sequences, vec![first()]).expect("a good plan");
    assert_eq!(sequences.free_slots(), 2);
    let again = StepPlan {
        ended: vec![1],
        ..plan(2, vec![Span { sequence: 2, evidence_positions: vec![17, 18, 19], ..first() }])
    };
    sequences.apply(again).expect("the blocks, the slot and the setting's id are free for sequence 2");
    assert!(sequences.get(1).is_none() && sequences.free_slots() == 0);
    let other = WireSetting { temperature: Some(2.0), ..setting(1) };
    let start = SequenceStart { setting: Some(other), ..start().expect("a start") };
    let renamed =
        StepPlan { ended: vec![2], ..plan(3, vec![Span { sequence: 3, start: Some(start), ..first() }]) };
    sequences.apply(renamed).expect("no sequence names the setting any more");
    let over = StepPlan { ended: vec![3], ..plan(4, vec![]) };
    assert!(sequences.apply(over).expect("ends only").spans.is_empty());
    assert_eq!(sequences.free_slots(), 3);
}

#[test]
fn a_span_drops_what_was_fed_from_its_position_on() {
    let mut sequences = last_stage();
    apply(&mut sequences, vec![first()]).expect("a good plan");
    let proposals = Span { token_ids: vec![50, 51, 52], evidence_positions: vec![20, 21, 22], ..next() };
    apply(&mut sequences, vec![proposals]).expect("three rows");
    assert!(sequences.kept(1, 1, 19).is_none(), "the sequence went on");
    assert!(sequences.kept(2, 1, 21).is_some() && sequences.kept(1, 1, 21).is_none(), "by step");
    let corrected = Span { first_position: 21, token_ids: vec![60], evidence_positions: vec![21], ..next() };
    apply(&mut sequences, vec![corrected]).expect("position 21 anew");
    let sequence = sequences.get(1).expect("lives");
    assert_eq!(sequence.context(21).map(|ids| &ids[18..]), Some([18, 19, 50, 60].as_slice()));
    assert_eq!((sequence.end, sequence.context(22)), (22, None));
}

#[test]
fn a_cached_prefix_comes_as_prior_ids() {
    let mut sequences = last_stage();
    let penalized = WireSetting { frequency_penalty: 0.5, ..setting(1) };
    let prior_ids = (0..16).collect();
    let start = SequenceStart { prompt_len: 20, setting: Some(penalized), prior_ids };
    let span = Span { first_position: 16, token_ids: (16..20).collect(), start: Some(start), ..first() };
    let step = apply(&mut sequences, vec![span]).expect("a good plan");
    assert!(step.spans[0].setting.as_ref().is_some_and(|setting| setting.has_penalties()));
    let ids: Vec<u32> = (0..20).collect();
    assert_eq!(sequences.get(1).and_then(|sequence| sequence.context(19)), Some(ids.as_slice()));
}

#[test]
fn other_stages_keep_neither_ids_nor_rows() {
    let mut sequences = Sequences::new(7, Room { logits_slots: None, ..ROOM });
    let step = apply(&mut sequences, vec![Span { evidence_positions: vec![16, 17, 18, 19], ..first() }]);
    let step = step.expect("slots do not matter here");
    assert!(step.spans[0].slots.is_empty() && step.spans[0].setting.is_none());
    assert_eq!(sequences.get(1).and_then(|sequence| sequence.context(0)), None);
    apply(&mut sequences, vec![next()]).expect("it goes on");
}

fn hostile_span() -> impl Strategy<Value = Span> {
    let small = |most: u32| prop_oneof![9 => 0..most, 1 => any::<u32>()];
    let start =
        prop::option::of((small(40), prop::option::of(0..3u64), prop::collection::vec(small(110), 0..6)));
    (
        (0..4u64, small(40), prop::collection::vec(small(101), 0..12)),
        (small(4), prop::collection::vec(small(9), 0..4)),
        (prop::collection::vec(small(40), 0..4), small(1026), 0..3u64),
        start,
    )
        .prop_map(|((sequence, first_position, token_ids), (table_offset, blocks), evidence, start)| {
            let (evidence_positions, top_k, setting_id) = evidence;
            let start = start.map(|(prompt_len, id, prior_ids)| SequenceStart {
                prompt_len,
                setting: id.map(setting),
                prior_ids,
            });
            Span {
                sequence,
                first_position,
                token_ids,
                table_offset,
                blocks,
                evidence_positions,
                top_k,
                setting_id,
                start,
            }
        })
}

proptest! {
    #[test]
    fn hostile_plans_neither_panic_nor_outgrow_the_room(
        plans in prop::collection::vec((prop::collection::vec(0..4u64, 0..2), prop::collection::vec(hostile_span(), 0..4)), 0..20)
    ) {
        let mut sequences = last_stage();
        for (ended, spans) in plans {
            let step = sequences.step + 1;
            let applied = sequences.apply(StepPlan { ended, ..plan(step, spans) });
            if let Ok(step) = applied {
                prop_assert!(step.rows() <= ROOM.max_rows);
                for span in &step.spans {
                    let sequence = sequences.get(span.sequence).expect("a span's sequence lives");
                    let end = span.first_position + span.token_ids.len();
                    prop_assert!(end <= ROOM.max_context && sequence.blocks.len() * BLOCK_ROWS >= end);
                    prop_assert!(sequence.blocks.iter().all(|block| (*block as usize) < ROOM.kv_blocks));
                    prop_assert_eq!(span.slots.len(), span.evidence.len());
                }
            } else {
                sequences = last_stage();
            }
            prop_assert!(sequences.by_id.len() <= ROOM.kv_blocks);
        }
    }
}
