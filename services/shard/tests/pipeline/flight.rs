//! Steps in flight: plans go out ahead, as many as the epoch allows, and the numbers are those of one step at a time.

use std::collections::VecDeque;

use asterism_proto::shard::v1::{Evidence, JoinRequest};
use asterism_shard::{ComputeType, DeviceName, DeviceOptions, ShardConfig};

use crate::driver::{Driver, Pipeline, holder, join};
use crate::plans::{Talk, all_on, best, off};

/// Rows of a chunk.
const CHUNK: usize = 7;
/// Tokens of every answer.
const ANSWER: usize = 6;

/// Five sequences, each with steps of its own. Chunks of a prompt follow each other without waiting; a token waits for the
/// evidence before it, and others' steps go on meanwhile. Evidence by (sequence, position), in full.
async fn answers(pipeline: &Pipeline, epoch: u64, in_flight: u32) -> String {
    let request = JoinRequest { steps_in_flight: in_flight, ..join(holder(epoch, "driver")) };
    let mut driver = Driver::claim(pipeline, request).await.expect("nobody else holds it");
    let settings = [all_on(1), off(2), all_on(3), off(4), all_on(5)];
    let mut talks: Vec<Talk> = settings
        .into_iter()
        .zip([23, 5, 31, 1, 16])
        .map(|(setting, len)| Talk::new(setting.id, len, setting))
        .collect();
    let mut may_go: VecDeque<usize> = (0..talks.len()).collect();
    let mut flying = VecDeque::new();
    let mut all: Vec<Evidence> = Vec::new();
    loop {
        while flying.len() < in_flight as usize
            && let Some(index) = may_go.pop_front()
        {
            let span = talks[index].span(CHUNK);
            let waits = !span.evidence_positions.is_empty();
            let plan = driver.plan(vec![span]);
            flying.push_back((plan.clone(), index, waits));
            driver.send(plan).await;
            if !waits {
                may_go.push_back(index);
            }
        }
        let Some((plan, index, waits)) = flying.pop_front() else { break };
        let evidence = driver.reported(&plan).await.expect("a good plan");
        assert_eq!(evidence.len(), usize::from(waits), "evidence comes with its own step");
        for evidence in evidence {
            let talk = &mut talks[index];
            assert_eq!((evidence.sequence, evidence.error.as_ref()), (talk.id, None));
            talk.say(best(&evidence));
            if talk.ids.len() < talk.prompt_len as usize + ANSWER {
                may_go.push_back(index);
            }
            all.push(evidence);
        }
    }
    assert_eq!(all.len(), 5 * ANSWER);
    all.sort_by_key(|evidence| (evidence.sequence, evidence.position));
    format!("{all:?}")
}

/// One pipeline of each length on `device`: all agree, however many steps are in flight.
async fn agree(device: DeviceName, compute: ComputeType) {
    let mut first = None;
    for stages in [1, 2, 3] {
        let change = |config| ShardConfig { device, compute: Some(compute), deterministic: true, ..config };
        let pipeline = Pipeline::start(stages, change).await;
        let most = if stages == 1 { 2 } else { stages + 2 };
        for (epoch, in_flight) in [(1, 1), (2, most), (3, most)] {
            let told = answers(&pipeline, epoch, in_flight).await;
            let first = first.get_or_insert_with(|| told.clone());
            assert_eq!(*first, told, "{stages} stages on {device}, {compute:?}, {in_flight} steps in flight");
        }
    }
}

#[tokio::test]
async fn steps_in_flight_have_the_numbers_of_one_at_a_time() {
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        agree(DeviceName::Cpu, compute).await;
    }
}

#[tokio::test]
async fn so_they_have_on_a_card() {
    if let Err(error) = DeviceName::Cuda(0).open(DeviceOptions::default()) {
        eprintln!("not run on a card: {error}");
        return;
    }
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        agree(DeviceName::Cuda(0), compute).await;
    }
}
