//! With real draws over a model of the stages: the answer is the same whatever is proposed, and nothing of a rejected position is
//! left or read.

use std::collections::VecDeque;

use asterism_proto::list::pack;
use asterism_proto::{shard, v1};
use proptest::prelude::*;

use super::*;
use crate::sampler::{Draw, Evidence, Row, Sampling, draw, draw_from_row};
use crate::text::GenerationDefaults;

const VOCAB: u32 = 6;

/// The last stage: ids by position, and logits that depend on all ids up to a row's, as penalties do.
struct Stage {
    sampling: Sampling,
    model: u64,
    prompt_len: usize,
    ids: Vec<u32>,
    /// What the text says; evidence of a row that was fed something else must not be read.
    truth: Option<Vec<u32>>,
}

impl Stage {
    /// A span from `first` on, of which all rows from `evidence` on report.
    fn span(&mut self, first: u32, ids: &[u32], evidence: u32) -> Vec<shard::v1::Evidence> {
        assert!(first as usize <= self.ids.len(), "a hole before {first}");
        self.ids.truncate(first as usize);
        self.ids.extend(ids);
        (evidence..self.ids.len() as u32).map(|position| self.evidence(position)).collect()
    }

    fn logits(&self, position: u32) -> Vec<f32> {
        let (before, answer) =
            (&self.ids[..=position as usize], self.ids.get(self.prompt_len..=position as usize));
        let context = before.iter().rev().take(2).fold(self.model, |hash, &id| hash * 31 + u64::from(id));
        let logit = |id| {
            let drawn = answer.map_or(0, |answer| answer.iter().filter(|&&drawn| drawn == id).count());
            3.0 * crate::sampler::uniform(context, id, 0) as f32 - 0.01 * drawn as f32
        };
        (0..VOCAB).map(logit).collect()
    }

    fn evidence(&self, position: u32) -> shard::v1::Evidence {
        let logits = self.logits(position);
        let is_true = |truth: &Vec<u32>| truth.starts_with(&self.ids[..=position as usize]);
        let error = match &self.truth {
            Some(truth) if !is_true(truth) => Some("a rejected row was read".to_owned()),
            _ => None,
        };
        let mut ids: Vec<u32> = (0..VOCAB).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        // So few that now and then a row has to be fetched.
        ids.truncate(self.sampling.evidence_k(VOCAB).min(3) as usize);
        let best: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let log_sum_exp = |temperature: f32| {
            logits.iter().map(|&x| (f64::from(x) / f64::from(temperature)).exp()).sum::<f64>().ln()
        };
        shard::v1::Evidence {
            sequence: 1,
            position,
            error,
            ids: pack(&ids),
            processed: pack(&best),
            raw: pack(&best),
            processed_log_sum_exp: self.sampling.setting(1).temperature.map(log_sum_exp),
            ..shard::v1::Evidence::default()
        }
    }

    fn fetch(&self, position: u32) -> Row {
        let bytes: Vec<u8> = self.logits(position).iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let wire = shard::v1::FetchLogitsResponse { processed: bytes.into(), ..Default::default() };
        Row::parse(&wire, &self.sampling, VOCAB).unwrap()
    }
}

/// Draws what a span's evidence gives, as the driver does; returns how many rows were fetched.
fn draw_all(
    stage: &Stage,
    verification: &mut Verification,
    report: Vec<shard::v1::Evidence>,
    answer: &mut Vec<u32>,
) -> usize {
    let mut fetches = 0;
    let mut kept = VecDeque::from(report);
    while let Some(wire) = kept.pop_front() {
        match verification.wanted(wire.position) {
            Wanted::Never => continue,
            Wanted::Later => panic!("position {} comes before its time", wire.position),
            Wanted::Now => {}
        }
        let evidence = Evidence::parse(wire, &stage.sampling, VOCAB).unwrap();
        let token = match draw(&stage.sampling, &evidence, VOCAB) {
            Draw::Token(token) => token,
            Draw::NeedsRow => {
                fetches += 1;
                for behind in &kept {
                    let wanted = verification.wanted(behind.position);
                    assert_eq!(wanted, Wanted::Later, "what comes while a row is fetched is kept");
                }
                draw_from_row(&stage.sampling, &evidence, &stage.fetch(evidence.position()))
            }
        };
        answer.push(token.id);
        verification.drawn(token.id);
    }
    assert!(verification.is_over(), "the last row's token ends it");
    fetches
}

/// One request.
#[derive(Clone, Debug)]
struct Request {
    model: u64,
    sampling: v1::Sampling,
    prompt: Vec<u32>,
    max_tokens: usize,
}

/// What became of it.
struct Answer {
    tokens: Vec<u32>,
    steps: usize,
    fetches: usize,
}

impl Request {
    /// Its answer with what `propose` proposes. `truth`: the answer without.
    fn run(&self, truth: Option<&[u32]>, mut propose: impl FnMut(History<'_>, u32) -> Proposal) -> Answer {
        let (output, defaults) = (v1::Output::default(), GenerationDefaults::default());
        let sampling = Sampling::resolve(&self.sampling, &output, &defaults, VOCAB, 5).unwrap();
        let prompt_len = self.prompt.len();
        let truth = truth.map(|answer| [&self.prompt, answer].concat());
        let mut stage = Stage { sampling, model: self.model, prompt_len, ids: Vec::new(), truth };
        let none = Proposal { ids: Vec::new(), price: price(1.0) };
        let last = prompt_len as u32 - 1;
        let mut verification = Verification::new(last, none);
        let report = stage.span(0, &self.prompt, last);
        let mut answer = Answer { tokens: Vec::new(), steps: 1, fetches: 0 };
        answer.fetches += draw_all(&stage, &mut verification, report, &mut answer.tokens);
        while answer.tokens.len() < self.max_tokens {
            let history = History::new(&self.prompt, &answer.tokens);
            assert_eq!(verification.fed() + 1, history.len(), "one token is due");
            let proposal = propose(history, (self.max_tokens - answer.tokens.len() - 1) as u32);
            let first = verification.fed();
            let due = answer.tokens.last().copied().unwrap();
            let ids = [&[due], &proposal.ids[..]].concat();
            verification = Verification::new(first, proposal);
            let report = stage.span(first, &ids, first);
            answer.fetches += draw_all(&stage, &mut verification, report, &mut answer.tokens);
            answer.steps += 1;
        }
        answer
    }

    fn plain(&self) -> Answer {
        self.run(None, |_, _| Proposal { ids: Vec::new(), price: price(1.0) })
    }
}

fn samplings() -> impl Strategy<Value = v1::Sampling> {
    let random =
        (any::<u64>(), 0.2..1.5f32, 0.5..1.0f32).prop_map(|(seed, temperature, top_p)| v1::Sampling {
            do_sample: Some(true),
            seed: Some(seed),
            temperature: Some(temperature),
            top_p: Some(top_p),
            ..v1::Sampling::default()
        });
    prop_oneof![Just(v1::Sampling::default()), random]
}

fn requests() -> impl Strategy<Value = Request> {
    (0u64..1000, samplings(), prop::collection::vec(0..VOCAB, 1..12), 1usize..80)
        .prop_map(|(model, sampling, prompt, max_tokens)| Request { model, sampling, prompt, max_tokens })
}

proptest! {
    #[test]
    fn the_answer_is_the_same_with_proposals_from_its_text(request in requests(), cost in 0.0..0.5f64) {
        let plain = request.plain();
        let mut speculator = Speculator::default();
        let answer = request.run(Some(&plain.tokens), |history, most| speculator.propose(history, offer(cost, most)));
        prop_assert_eq!(&answer.tokens, &plain.tokens);
        prop_assert!(answer.fetches <= plain.fetches, "no row is fetched for nothing");
    }

    #[test]
    fn the_answer_is_the_same_whatever_is_proposed(
        request in requests(),
        proposals in prop::collection::vec((prop::collection::vec(0..VOCAB, 0..6), 0usize..6), 1..20),
    ) {
        let plain = request.plain();
        let truth = plain.tokens.clone();
        let mut proposals = proposals.into_iter().cycle();
        // Right ids first, then any.
        let mut propose = |history: History<'_>, most: u32| {
            let (any, right) = proposals.next().unwrap();
            let drawn = history.len() as usize - request.prompt.len();
            let right = truth[drawn..].iter().take(right).copied();
            Proposal { ids: right.chain(any).take(most as usize).collect(), price: price(0.0) }
        };
        prop_assert_eq!(request.run(Some(&truth), &mut propose).tokens, plain.tokens);
    }

    #[test]
    fn a_verification_wants_its_rows_in_order_and_none_behind_a_wrong_one(
        first in 0u32..50,
        proposed in prop::collection::vec(0u32..3, 0..8),
        drawn in prop::collection::vec(0u32..3, 9),
    ) {
        let right = proposed.iter().zip(&drawn).take_while(|(a, b)| a == b).count() as u32;
        let rows = proposed.len() as u32 + 1;
        let mut verification = Verification::new(first, Proposal { ids: proposed, price: price(0.5) });
        for row in 0..=right {
            for position in 0..first + rows + 3 {
                let expected = match position.checked_sub(first) {
                    Some(at) if at == row => Wanted::Now,
                    Some(at) if at > row && at < rows => Wanted::Later,
                    _ => Wanted::Never,
                };
                prop_assert_eq!(verification.wanted(position), expected, "at {} of row {}", position, row);
            }
            let verdict = verification.drawn(drawn[row as usize]);
            prop_assert_eq!(verdict, if row < right { Verdict::Holds } else { Verdict::Over });
        }
        prop_assert!(verification.is_over());
        prop_assert!((0..first + rows + 3).all(|position| verification.wanted(position) == Wanted::Never));
        prop_assert_eq!(verification.drawn(1), Verdict::Over, "and stays so");
        prop_assert_eq!(verification.fed(), first + 1 + right);
        prop_assert_eq!(verification.outcome(), Outcome { proposed: rows - 1, accepted: right, price: price(0.5) });
    }
}

#[test]
fn a_text_that_goes_in_circles_takes_fewer_steps() {
    let request =
        Request { model: 1, sampling: v1::Sampling::default(), prompt: vec![1, 2, 3], max_tokens: 200 };
    let plain = request.plain();
    let mut speculator = Speculator::default();
    let answer =
        request.run(Some(&plain.tokens), |history, most| speculator.propose(history, offer(0.02, most)));
    assert_eq!(answer.tokens, plain.tokens);
    assert!(answer.steps * 2 < plain.steps, "{} steps instead of {}", answer.steps, plain.steps);
}

#[test]
fn rows_are_fetched_in_these_tests() {
    let sampling = v1::Sampling {
        do_sample: Some(true),
        seed: Some(1),
        temperature: Some(1.0),
        ..v1::Sampling::default()
    };
    let request = Request { model: 1, sampling, prompt: vec![1, 2, 3], max_tokens: 100 };
    assert!(request.plain().fetches > 10, "{}", request.plain().fetches);
}
