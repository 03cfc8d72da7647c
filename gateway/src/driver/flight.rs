//! Steps that were sent and not yet reported by every stage.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use asterism_proto::shard::v1::{Span, StepPlan, StepReport};

use super::pace::Way;
use crate::scheduler::{RunId, StepId};

/// All steps under way, oldest first.
#[derive(Debug)]
pub struct Flights {
    stages: usize,
    flights: VecDeque<Flight>,
}

#[derive(Debug)]
struct Flight {
    step: StepId,
    /// (run, position) of each row whose evidence is wanted, in the order of the plan.
    wanted: Vec<(RunId, u32)>,
    rows: u32,
    /// Whether it holds decode rows alone: all have evidence.
    decodes: bool,
    sent: Instant,
    alone: bool,
    reported: Vec<bool>,
    busy: Duration,
    slowest: Duration,
    total: Duration,
}

/// What a report means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The step is done on every stage.
    pub done: bool,
    /// Of a done step that holds rows.
    pub way: Option<Way>,
}

/// A report that does not belong to any plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongReport {
    /// Of a step that this stage has reported, or that was never planned.
    #[error("it reported step {step} of epoch {epoch}, which is not under way there")]
    Step {
        /// As reported.
        epoch: u64,
        /// As reported.
        step: u64,
    },
    /// Evidence of other rows than those planned.
    #[error("its evidence of step {step} is not that of the planned rows")]
    Rows {
        /// As reported.
        step: u64,
    },
}

impl Flights {
    /// None yet, in a pipeline of `stages`.
    pub fn new(stages: usize) -> Self {
        Self { stages, flights: VecDeque::new() }
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// When the oldest was sent.
    pub fn oldest(&self) -> Option<Instant> {
        self.flights.front().map(|flight| flight.sent)
    }

    /// A plan goes out.
    pub fn sent(&mut self, plan: &StepPlan, now: Instant) {
        let wanted = plan
            .spans
            .iter()
            .flat_map(|span| span.evidence_positions.iter().map(|position| (span.sequence, *position)));
        self.flights.push_back(Flight {
            step: plan.step,
            wanted: wanted.collect(),
            rows: plan.spans.iter().map(|span| span.token_ids.len() as u32).sum(),
            decodes: !plan.spans.is_empty() && plan.spans.iter().all(has_decode_rows),
            sent: now,
            alone: self.flights.is_empty(),
            reported: vec![false; self.stages],
            busy: Duration::ZERO,
            slowest: Duration::ZERO,
            total: Duration::ZERO,
        });
    }

    /// A stage reports.
    ///
    /// # Errors
    /// The report fits no plan.
    pub fn reported(
        &mut self,
        epoch: u64,
        stage: usize,
        report: &StepReport,
        now: Instant,
    ) -> Result<Progress, WrongReport> {
        let wrong = WrongReport::Step { epoch: report.epoch, step: report.step };
        // Every stage works in step order, so its next report is of the oldest step that it has not reported.
        let next = self.flights.iter_mut().position(|flight| flight.reported.get(stage) == Some(&false));
        let Some(index) = next else { return Err(wrong) };
        let Some(flight) = self.flights.get_mut(index) else { return Err(wrong) };
        if report.epoch != epoch || flight.step != report.step {
            return Err(wrong);
        }
        let last = stage + 1 == self.stages;
        let found = report.evidence.iter().map(|evidence| (evidence.sequence, evidence.position));
        let expected: &[_] = if last { &flight.wanted } else { &[] };
        if !found.eq(expected.iter().copied()) {
            return Err(WrongReport::Rows { step: report.step });
        }
        flight.reported[stage] = true;
        let busy = Duration::from_nanos(report.times.map_or(0, |times| times.busy));
        flight.busy += busy;
        flight.slowest = flight.slowest.max(busy);
        if last {
            flight.total = now.saturating_duration_since(flight.sent);
        }
        if !flight.reported.iter().all(|reported| *reported) {
            return Ok(Progress::default());
        }
        let way = Way {
            rows: flight.rows,
            total: flight.total,
            busy: flight.busy,
            slowest: flight.slowest,
            decodes: flight.decodes,
            alone: flight.alone && flight.decodes,
        };
        let way = (flight.rows > 0).then_some(way);
        self.flights.remove(index);
        Ok(Progress { done: true, way })
    }
}

/// Whether a span is a drawn token's row with what may follow it. (A prompt's last row alone costs the same.)
fn has_decode_rows(span: &Span) -> bool {
    span.evidence_positions.len() == span.token_ids.len()
}

#[cfg(test)]
mod tests {
    use asterism_proto::shard::v1::Evidence;

    use super::*;

    fn plan(step: u64) -> StepPlan {
        let span = Span { sequence: 5, token_ids: vec![1], evidence_positions: vec![9], ..Span::default() };
        StepPlan { epoch: 2, step, spans: vec![span], ..StepPlan::default() }
    }

    fn report(step: u64, evidence: &[(u64, u32)]) -> StepReport {
        let evidence = evidence.iter().map(|(sequence, position)| Evidence {
            sequence: *sequence,
            position: *position,
            ..Evidence::default()
        });
        StepReport { epoch: 2, step, evidence: evidence.collect(), ..StepReport::default() }
    }

    #[test]
    fn a_step_is_done_when_every_stage_has_reported_it() {
        let now = Instant::now();
        let mut flights = Flights::new(2);
        flights.sent(&plan(1), now);
        flights.sent(&plan(2), now);
        let mut reported =
            |stage, report| flights.reported(2, stage, &report, now).map(|progress| progress.done);
        assert_eq!(reported(0, report(1, &[])), Ok(false));
        assert_eq!(reported(0, report(2, &[])), Ok(false));
        assert_eq!(reported(1, report(1, &[(5, 9)])), Ok(true));
        assert_eq!(reported(1, report(2, &[(5, 9)])), Ok(true));
        assert!(flights.is_empty());
    }

    #[test]
    fn reports_that_fit_no_plan_are_refused() {
        let now = Instant::now();
        let wrong = |stage, report: StepReport| {
            let mut flights = Flights::new(2);
            flights.sent(&plan(1), now);
            flights.sent(&plan(2), now);
            flights.reported(2, stage, &report, now).unwrap_err()
        };
        let step = |epoch, step| WrongReport::Step { epoch, step };
        assert_eq!(wrong(0, report(2, &[])), step(2, 2));
        assert_eq!(wrong(0, report(3, &[])), step(2, 3));
        assert_eq!(wrong(7, report(1, &[])), step(2, 1));
        assert_eq!(wrong(0, StepReport { epoch: 1, ..report(1, &[]) }), step(1, 1));
        assert_eq!(wrong(0, report(1, &[(5, 9)])), WrongReport::Rows { step: 1 });
        assert_eq!(wrong(1, report(1, &[])), WrongReport::Rows { step: 1 });
        assert_eq!(wrong(1, report(1, &[(5, 8)])), WrongReport::Rows { step: 1 });
    }
}
