//! The same numbers for every split, chunking, batch and number of threads.

use asterism_proto::shard::v1::Evidence;
use asterism_shard::ComputeType;

use crate::driver::{Driver, Pipeline, Way, holder};
use crate::plans::{Talk, all_on, best, off};

/// Three sequences that join at different times, prefilled in chunks of `chunk` rows and decoded greedily together.
/// Evidence by (sequence, position).
async fn conversation(pipeline: &Pipeline, chunk: usize) -> Vec<Evidence> {
    let mut driver = Driver::join(pipeline, holder(1, "driver")).await.expect("nobody holds it");
    let mut waiting = vec![Talk::new(3, 1, off(3)), Talk::new(2, 23, all_on(2)), Talk::new(1, 18, all_on(1))];
    let mut running: Vec<Talk> = Vec::new();
    let mut all = Vec::new();
    while let Some(mut joining) = waiting.pop() {
        let mut fresh = loop {
            let span = joining.span(chunk);
            let is_last = !span.evidence_positions.is_empty();
            let evidence = driver.step(vec![span]).await;
            if is_last {
                break evidence;
            }
            assert_eq!(evidence, []);
        };
        joining.say(best(&fresh[0]));
        all.append(&mut fresh);
        running.push(joining);
        for _ in 0..6 {
            let spans = running.iter_mut().map(|talk| talk.span(1)).collect();
            let evidence = driver.step(spans).await;
            assert_eq!(evidence.len(), running.len());
            for (talk, evidence) in running.iter_mut().zip(&evidence) {
                assert_eq!((evidence.sequence, evidence.error.as_ref()), (talk.id, None));
                talk.say(best(evidence));
            }
            all.extend(evidence);
        }
    }
    all.sort_by_key(|evidence| (evidence.sequence, evidence.position));
    all
}

/// All values in full, so that -0 is not 0.
fn digits(all: &[Evidence]) -> String {
    format!("{all:?}")
}

#[tokio::test]
async fn any_split_chunking_and_thread_count_gives_the_same_evidence() {
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        let one = conversation(&Pipeline::computing(1, compute, 1).await, 32).await;
        assert_eq!(one.len(), 3 + 6 + 12 + 18, "evidence of every decoded token");
        for (stages, chunk, threads) in [(1, 5, 2), (2, 32, 1), (3, 7, 2), (6, 1, 1)] {
            let split = conversation(&Pipeline::computing(stages, compute, threads).await, chunk).await;
            assert_eq!(
                digits(&one),
                digits(&split),
                "{stages} stages, chunks of {chunk}, {threads} threads, {compute:?}"
            );
        }
    }
}

#[tokio::test]
async fn plans_through_the_door_give_the_same_evidence() {
    let [over_sockets, through_the_door] = Way::ALL.map(async |way| {
        let evidence = conversation(&Pipeline::by(way, 3).await, 7).await;
        digits(&evidence)
    });
    assert_eq!(over_sockets.await, through_the_door.await);
}

#[tokio::test]
async fn a_replay_in_a_new_epoch_and_other_blocks_gives_the_same_evidence() {
    let pipeline = Pipeline::plain(2).await;
    let mut talk = Talk::new(1, 20, all_on(1));
    let mut driver = Driver::join(&pipeline, holder(1, "driver")).await.expect("nobody holds it");
    let mut seen = driver.step(vec![talk.prompt()]).await;
    for _ in 0..5 {
        talk.say(best(seen.last().expect("evidence")));
        seen.extend(driver.step(vec![talk.span(1)]).await);
    }
    // The answer so far comes as rows; the prompt stays as long as it was.
    let mut replay = Talk { blocks: vec![9, 30, 4], ..Talk::new(5, 20, all_on(8)) };
    replay.ids.clone_from(&talk.ids);
    let mut driver = Driver::join(&pipeline, holder(2, "driver")).await.expect("the same driver");
    let again = driver.step(vec![replay.prompt()]).await;
    let last = seen.last().expect("evidence");
    assert_eq!(again, [Evidence { sequence: 5, ..last.clone() }]);
}

#[tokio::test]
async fn rejected_proposals_leave_no_trace() {
    let pipeline = Pipeline::plain(2).await;
    let mut driver = Driver::join(&pipeline, holder(1, "driver")).await.expect("nobody holds it");
    let (mut straight, mut guessing) = (Talk::new(1, 14, all_on(1)), Talk::new(2, 14, all_on(2)));
    guessing.ids.clone_from(&straight.ids);
    driver.step(vec![straight.prompt(), guessing.prompt()]).await;
    let guesses = vec![100, 101, 102];
    let mut span = guessing.span(0);
    span =
        asterism_proto::shard::v1::Span { token_ids: guesses, evidence_positions: vec![14, 15, 16], ..span };
    let evidence = driver.step(vec![span]).await;
    assert_eq!(evidence.iter().map(|evidence| evidence.position).collect::<Vec<_>>(), [14, 15, 16]);
    for talk in [&mut straight, &mut guessing] {
        talk.say(100);
        talk.say(200);
    }
    let evidence = driver.step(vec![straight.span(2), guessing.span(2)]).await;
    assert_eq!(evidence[1], Evidence { sequence: 2, ..evidence[0].clone() });
}

#[tokio::test]
async fn a_cached_prefix_gives_the_same_evidence_with_its_ids_told() {
    let pipeline = Pipeline::plain(1).await;
    let mut driver = Driver::join(&pipeline, holder(1, "driver")).await.expect("nobody holds it");
    let mut whole = Talk::new(1, 20, all_on(1));
    let first = driver.step(vec![whole.prompt()]).await;
    // The second sequence names the first one's full block, and computes the rest in one of its own.
    let mut cached = Talk { blocks: vec![whole.blocks[0], 20], ..Talk::new(2, 20, all_on(2)) };
    cached.ids.clone_from(&whole.ids);
    let mut span = cached.prompt();
    span.first_position = 16;
    span.token_ids.drain(..16);
    span.start.as_mut().expect("a start").prior_ids = whole.ids[..16].to_vec();
    assert_eq!(driver.step(vec![span]).await, [Evidence { sequence: 2, ..first[0].clone() }]);
}
