//! Text traces: a script of what happens, and under each line the plans that the scheduler makes of it.
//!
//! Lines that begin with `>` are the script, all others are what it leads to; a test plays the script and compares the whole
//! text. In a plan, `a 0..16` are rows of sequence a at these positions, `+2` says that two blocks of its table are told with
//! them, `?` that evidence of the last row is wanted, `ahead 2` that two proposed rows stand behind it, and `end a` that a run
//! of it is over for the stages. Steps of decode rows that only go on from the one before stand in its line.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use super::*;

/// Plays a script.
struct Player {
    limits: Limits,
    scheduler: Scheduler,
    sent: VecDeque<Step>,
    /// The tokens of each answer, 5 beyond, and how many of them were drawn.
    answers: BTreeMap<SequenceId, Vec<u32>>,
    drawn: BTreeMap<SequenceId, usize>,
    /// Whose runs the stages know.
    runs: BTreeMap<RunId, char>,
    text: String,
    /// Not yet in the text.
    line: Option<Line>,
}

/// One plan, or several of decode rows that follow each other.
struct Line {
    steps: (StepId, StepId),
    ended: Vec<char>,
    spans: Vec<Rows>,
}

/// A sequence's rows.
struct Rows {
    name: char,
    positions: std::ops::Range<u32>,
    blocks: usize,
    evidence: bool,
    /// Rows that were proposed, beside the positions.
    ahead: usize,
    /// Whether each was in a step of its own.
    decode: bool,
}

impl Line {
    /// Whether a plan only goes on from here.
    fn is_followed_by(&self, next: &Self) -> bool {
        let follows = |(before, after): (&Rows, &Rows)| {
            let goes_on = before.name == after.name && before.positions.end == after.positions.start;
            goes_on && before.decode && after.decode && after.blocks == 0
        };
        next.ended.is_empty()
            && self.spans.len() == next.spans.len()
            && self.spans.iter().zip(&next.spans).all(follows)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, last) = self.steps;
        let steps = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let ended = self.ended.iter().map(|name| format!("end {name}"));
        let spans = self.spans.iter().map(|Rows { name, positions, blocks, evidence, ahead, .. }| {
            let blocks = if *blocks > 0 { format!(" +{blocks}") } else { String::new() };
            let ahead = if *ahead > 0 { format!(" ahead {ahead}") } else { String::new() };
            let evidence = if *evidence { "?" } else { "" };
            format!("{name} {}..{}{blocks}{ahead}{evidence}", positions.start, positions.end)
        });
        let parts: Vec<String> = ended.chain(spans).collect();
        writeln!(formatter, "  {steps}: {}", parts.join(", "))
    }
}

#[track_caller]
fn check(trace: &str) {
    let limits = Limits { stages: 1, blocks: 6, rows: 64, steps_in_flight: 2, max_context: 96, ..limits() };
    let mut player = Player {
        limits,
        scheduler: Scheduler::new(limits, QueueLimits { requests: 9, tokens: 1000 }),
        sent: VecDeque::new(),
        answers: BTreeMap::new(),
        drawn: BTreeMap::new(),
        runs: BTreeMap::new(),
        text: String::new(),
        line: None,
    };
    for line in trace.lines() {
        let Some(event) = line.strip_prefix("> ") else {
            if line.is_empty() || line.starts_with('#') {
                writeln!(player.text, "{line}").unwrap();
            }
            continue;
        };
        writeln!(player.text, "{line}").unwrap();
        player.play(event);
        player.end_line();
    }
    assert!(player.text == trace, "the trace is in truth:\n{}", player.text);
}

fn name(sequence: SequenceId) -> char {
    char::from(u8::try_from(sequence).expect("a letter"))
}

impl Player {
    fn play(&mut self, event: &str) {
        let words: Vec<&str> = event.split_whitespace().collect();
        match words[..] {
            // One stage may have any number of blocks, but a trace is short.
            ["pipeline", blocks, "blocks"] => {
                self.limits.blocks = blocks.parse().unwrap();
                self.scheduler = Scheduler::new(self.limits, QueueLimits { requests: 9, tokens: 1000 });
            }
            ["submit", name, sizes] => self.submit(name, sizes, |_| {}),
            ["submit", name, sizes, "priority", priority] => {
                self.submit(name, sizes, |sequence| sequence.priority = priority.parse().unwrap());
            }
            ["submit", name, sizes, "cached"] => {
                self.submit(name, sizes, |sequence| sequence.bypass_cache = false);
            }
            ["submit", name, sizes, "speculating"] => {
                self.submit(name, sizes, |sequence| sequence.speculation = Speculation::Auto);
            }
            ["answer", name, ref tokens @ ..] => {
                let tokens = tokens.iter().map(|token| token.parse().unwrap()).collect();
                self.answers.insert(u64::from(name.as_bytes()[0]), tokens);
            }
            ["run"] => self.run(1),
            ["run", steps] => self.run(steps.parse().unwrap()),
            ["send"] => self.send(),
            ["end", name] => {
                self.scheduler.end(u64::from(name.as_bytes()[0]));
            }
            ["epoch", "ends"] => {
                let mut given_up = self.scheduler.end_epoch();
                given_up.sort_unstable();
                for sequence in given_up {
                    writeln!(self.text, "  {} is given up", name(sequence)).unwrap();
                }
                self.scheduler.begin_epoch(self.limits);
                self.sent.clear();
                self.runs.clear();
            }
            _ => panic!("unknown event: {event}"),
        }
    }

    fn submit(&mut self, name: &str, sizes: &str, change: impl FnOnce(&mut NewSequence)) {
        let (prompt, max_tokens) = sizes.split_once('+').unwrap();
        let id = u64::from(name.as_bytes()[0]);
        let mut request = request(id, prompt.parse().unwrap(), max_tokens.parse().unwrap());
        change(&mut request);
        if let Err(refusal) = self.scheduler.submit(request) {
            writeln!(self.text, "  refused: {refusal}").unwrap();
        }
    }

    /// All plans that are due go out; the oldest step is done; so many times.
    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.send();
            let Some(step) = self.sent.pop_front() else { return };
            self.scheduler.step_done(step.id);
            for span in &step.spans {
                for position in span.evidence.clone() {
                    if self.scheduler.wanted(span.run, position) == Wanted::Now {
                        let drawn = self.drawn.entry(span.sequence).or_default();
                        let answer = self.answers.get(&span.sequence);
                        let token = answer.and_then(|answer| answer.get(*drawn)).copied().unwrap_or(5);
                        *drawn += 1;
                        self.scheduler.token(span.run, token);
                    }
                }
            }
        }
    }

    fn send(&mut self) {
        while let Some(step) = self.scheduler.next_step() {
            let ended = step.ended.iter().map(|run| self.runs[run]).collect();
            let ahead = |span: &Span| span.evidence.len().saturating_sub(1);
            let end = |span: &Span| span.first_position + (span.token_ids.len() - ahead(span)) as u32;
            let rows = |span: &Span| Rows {
                name: name(span.sequence),
                positions: span.first_position..end(span),
                ahead: ahead(span),
                blocks: span.blocks.len(),
                evidence: !span.evidence.is_empty(),
                decode: span.token_ids.len() == 1 && span.start.is_none(),
            };
            let next =
                Line { steps: (step.id, step.id), ended, spans: step.spans.iter().map(rows).collect() };
            match &mut self.line {
                Some(line) if line.is_followed_by(&next) => {
                    line.steps.1 = step.id;
                    for (before, after) in line.spans.iter_mut().zip(next.spans) {
                        before.positions.end = after.positions.end;
                    }
                }
                _ => {
                    self.end_line();
                    self.line = Some(next);
                }
            }
            self.runs.extend(step.spans.iter().map(|span| (span.run, name(span.sequence))));
            self.sent.push_back(step);
        }
    }

    fn end_line(&mut self) {
        if let Some(line) = self.line.take() {
            write!(self.text, "{line}").unwrap();
        }
    }
}

#[test]
fn what_begins_alike_is_computed_once() {
    check(include_str!("traces/prefix.txt"));
}

#[test]
fn what_repeats_itself_is_computed_ahead() {
    check(include_str!("traces/speculation.txt"));
}

#[test]
fn blocks_are_taken_as_positions_are_fed() {
    check(include_str!("traces/growth.txt"));
}

#[test]
fn the_youngest_gives_way_and_is_replayed() {
    check(include_str!("traces/preemption.txt"));
}

#[test]
fn lower_priority_gives_way_to_higher() {
    check(include_str!("traces/priority.txt"));
}

#[test]
fn an_epochs_end_interrupts_and_the_next_goes_on() {
    check(include_str!("traces/epochs.txt"));
}

#[test]
fn what_ends_every_epoch_is_replayed_alone_and_given_up() {
    check(include_str!("traces/poison.txt"));
}
