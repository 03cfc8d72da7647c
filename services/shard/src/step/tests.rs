use asterism_link::LinkKind;
use asterism_process::config::Bytes;
use asterism_proto::shard::v1::{Holder, SequenceStart, Setting, Span as WireSpan};
use tokio::runtime::Runtime;

use super::*;
use crate::config::{DeviceName, ShardConfig};
use crate::describe;
use crate::epoch::{DeviceEnd, EpochSpec, RunEnd};
use crate::load::{self, Loaded, Progress};
use crate::open::DeviceOptions;
use crate::sequences::Room;

/// The only stage of the tiny model, with nobody around it.
struct Stand {
    machine: Machine,
    room: Room,
    _runtime: Runtime,
}

impl Stand {
    fn new(device: DeviceName) -> Self {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-52b");
        let (max_rows, max_context) = (Some(32), Some(64));
        let memory = Some(Bytes(1 << 30));
        let config = ShardConfig { device, max_rows, max_context, memory, ..ShardConfig::new(tiny) };
        let loaded = load::load(&config, &Progress::default(), &|| false).expect("the tiny model");
        let Loaded { stage, edges, logits, logits_slots, .. } = loaded;
        let room = describe::room(stage.info(), logits_slots);
        let runtime = Runtime::new().expect("threads");
        let heart = Arc::default();
        let (metrics, _) = StageMetrics::new(&config);
        let machine = Machine {
            registry: Registry::default(),
            stage,
            edges,
            logits,
            heart,
            metrics,
            runtime: runtime.handle().clone(),
            wakefulness: None,
        };
        Self { machine, room, _runtime: runtime }
    }

    /// On every device there is.
    fn all() -> Vec<Self> {
        let card = DeviceName::Cuda(0);
        let card = match card.open(DeviceOptions::default()) {
            Ok(_) => Some(card),
            Err(error) => {
                eprintln!("not run on a card: {error}");
                None
            }
        };
        [DeviceName::Cpu].into_iter().chain(card).map(Self::new).collect()
    }

    /// An epoch, and the driver's ends of its channels.
    fn reign(&self, epoch: u64) -> (Reign, RunEnd) {
        let holder = Holder { epoch, driver_id: "driver".to_owned() };
        let spec =
            EpochSpec { holder, steps_in_flight: 2, largest: 1, has_upstream: false, link: LinkKind::Grpc };
        let (begun, DeviceEnd { plans, reports, receiver }) = Epoch::begin(spec);
        let run = begun.take_run().expect("it was not taken");
        let reign = Reign {
            epoch: Arc::new(begun),
            plans,
            reports,
            receiver,
            sender: None,
            sequences: Sequences::new(epoch, self.room),
            clock: StageClock::default(),
            staged: None,
            under_way: VecDeque::new(),
            awake: None,
        };
        (reign, run)
    }
}

/// Two chunks of a prompt, evidence after the second; the sequence's end; a prompt in one.
fn plans(epoch: u64) -> Vec<StepPlan> {
    let setting = Setting { id: 1, repetition_penalty: 1.0, temperature: Some(0.5), ..Setting::default() };
    let span = |sequence: u64, from: u32, to: u32, prompt_len: u32| WireSpan {
        sequence,
        first_position: from,
        token_ids: (from..to).map(|position| 4 + position * 37 % 400).collect(),
        table_offset: 0,
        blocks: if from == 0 { vec![sequence as u32, 0] } else { Vec::new() },
        evidence_positions: if to == prompt_len { vec![to - 1] } else { Vec::new() },
        top_k: 5,
        setting_id: 1,
        start: (from == 0).then(|| SequenceStart {
            prompt_len,
            setting: Some(setting.clone()),
            prior_ids: Vec::new(),
        }),
    };
    let plan = |step, ended, spans| StepPlan { epoch, step, ended, spans, traceparent: String::new() };
    vec![
        plan(1, Vec::new(), vec![span(1, 0, 9, 20)]),
        plan(2, Vec::new(), vec![span(1, 9, 20, 20)]),
        plan(3, vec![1], Vec::new()),
        plan(4, Vec::new(), vec![span(2, 0, 20, 20)]),
    ]
}

/// Steps and evidence as reported.
fn told(run: &mut RunEnd) -> Vec<(u64, String)> {
    let reports = std::iter::from_fn(|| run.reports.try_recv().ok());
    reports.map(|report| (report.step, format!("{:?}", report.evidence))).collect()
}

#[test]
fn steps_begun_behind_each_other_are_reported_in_order_with_the_same_evidence() {
    for mut stand in Stand::all() {
        let (mut reign, mut run) = stand.reign(1);
        let mut one_by_one = Vec::new();
        for plan in plans(1) {
            reign.begin(&mut stand.machine, plan).expect("a good plan");
            reign.finish(&stand.machine).expect("it is done");
            one_by_one.extend(told(&mut run));
        }
        assert_eq!(one_by_one.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(one_by_one[0].1, "[]");
        assert_ne!(one_by_one[1].1, "[]");

        let (mut reign, mut run) = stand.reign(2);
        let mut behind = Vec::new();
        for plan in plans(2) {
            reign.begin(&mut stand.machine, plan).expect("a good plan");
            if reign.under_way.len() == MOST_UNDER_WAY {
                reign.finish(&stand.machine).expect("it is done");
                behind.extend(told(&mut run));
            }
        }
        assert!(reign.is_busy() && stand.machine.heart.beat().working);
        reign.finish(&stand.machine).expect("it is done");
        behind.extend(told(&mut run));
        assert!(reign.is_idle() && reign.is_done() && !stand.machine.heart.beat().working);
        assert_eq!(behind, one_by_one);
        let layers = stand.machine.stage.info().layers.len() as u64;
        assert_eq!(stand.machine.heart.beat().layers_done, 6 * layers, "of three steps with rows, twice");
    }
}

#[test]
fn one_step_begins_behind_the_one_at_work_and_no_more() {
    for mut stand in Stand::all() {
        let (mut reign, run) = stand.reign(1);
        for plan in plans(1).into_iter().take(3) {
            run.plans.try_send(plan).expect("there is room");
        }
        for step in [1, 2] {
            let plan = reign.ready(&mut stand.machine).expect("nothing is wrong").expect("it may begin");
            assert_eq!(plan.step, step);
            reign.begin(&mut stand.machine, plan).expect("a good plan");
        }
        assert_eq!(reign.ready(&mut stand.machine).expect("nothing is wrong"), None);
        assert!(!reign.is_idle(), "a plan waits");
        reign.finish(&stand.machine).expect("it is done");
        let third = reign.ready(&mut stand.machine).expect("nothing is wrong");
        assert_eq!(third.map(|plan| plan.step), Some(3));
    }
}

#[test]
fn a_failed_card_is_told_from_a_wrong_plan() {
    let failed = TensorError::Cuda { what: "cuEventSynchronize", message: "an illegal access".to_owned() };
    assert!(matches!(StepError::from(failed), StepError::Device(TensorError::Cuda { .. })));
    let wrong = TensorError::Capacity { rows: 2, capacity: 1 };
    assert!(matches!(StepError::from(wrong), StepError::Epoch(why) if why.reason == Reason::Internal));
}
