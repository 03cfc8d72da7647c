//! Drawn answers: from evidence where that is enough, from fetched rows where not, always the same tokens.

use asterism_gateway::sampler::{Evidence, Row, Sampling, draw_from_row};
use asterism_gateway::text::GenerationDefaults;
use asterism_proto::shard::v1::{FetchLogitsResponse, Span};
use asterism_proto::v1::{self, GenerateRequest};
use tonic::Code;

use crate::sandbox::{Sandbox, ids};
use crate::toy;

/// The answer when every token is drawn from the whole row.
fn expected(prompt: &[u32], count: usize, sampling: &v1::Sampling) -> Vec<u32> {
    let output = v1::Output::default();
    let defaults = GenerationDefaults::default();
    let sampling = Sampling::resolve(sampling, &output, &defaults, toy::VOCAB, 0).unwrap();
    let setting = sampling.setting(1);
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let span = Span { top_k: toy::VOCAB, ..Span::default() };
        let evidence = toy::evidence(&ids, prompt.len(), &setting, &span);
        let evidence = Evidence::parse(evidence, &sampling, toy::VOCAB).unwrap();
        let row = toy::processed(&ids, prompt.len(), &setting);
        let processed: Vec<u8> = row.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let fetched = FetchLogitsResponse { processed: processed.into(), raw: Default::default() };
        let row = Row::parse(&fetched, &sampling, toy::VOCAB).unwrap();
        ids.push(draw_from_row(&sampling, &evidence, &row).id);
    }
    ids.split_off(prompt.len())
}

fn drawn(prompt: &[u32], count: u32, sampling: v1::Sampling) -> GenerateRequest {
    GenerateRequest { sampling: Some(sampling), ..ids(prompt, count) }
}

#[tokio::test]
async fn a_flat_distribution_needs_rows_and_a_steep_one_does_not() {
    let sandbox = Sandbox::new(2).await;
    for (temperature, fetches) in [(0.1, false), (20.0, true)] {
        let sampling = v1::Sampling { temperature: Some(temperature), seed: Some(7), ..Default::default() };
        let before = sandbox.shards[1].seen.borrow().fetches;
        let answer = sandbox.answer(drawn(&[1, 2], 30, sampling.clone())).await.unwrap();
        assert_eq!(answer.ids, expected(&[1, 2], 30, &sampling), "at {temperature}");
        assert_eq!(answer.started.seed, 7);
        assert_eq!(sandbox.shards[1].seen.borrow().fetches > before, fetches, "at {temperature}");
    }
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn others_go_on_while_rows_are_fetched_and_all_draw_as_alone() {
    let sandbox = Sandbox::new(3).await;
    let sampling = |n: u32| v1::Sampling {
        temperature: Some([0.0, 0.7, 3.0, 50.0][n as usize % 4]),
        top_k: (n % 3 == 1).then_some(20),
        top_p: (n % 5 == 2).then_some(0.8),
        repetition_penalty: Some(1.0 + n as f32 / 16.0),
        frequency_penalty: (n % 2 == 1).then_some(0.5),
        presence_penalty: (n % 7 == 3).then_some(-0.25),
        seed: Some(n.into()),
        ..Default::default()
    };
    let requests = (0..24).map(|n| sandbox.answer(drawn(&[n, 9, n], 10 + n, sampling(n))));
    let answers = futures::future::join_all(requests).await;
    for (n, answer) in (0..).zip(answers) {
        let expected = expected(&[n, 9, n], 10 + n as usize, &sampling(n));
        assert_eq!(answer.unwrap().ids, expected, "{n}");
    }
    assert!(sandbox.shards[2].seen.borrow().fetches > 0);
    sandbox.assert_clean().await;
}

#[tokio::test]
async fn a_missing_seed_is_drawn_and_told() {
    let sandbox = Sandbox::new(1).await;
    let sampling = v1::Sampling { temperature: Some(2.0), ..Default::default() };
    let first = sandbox.answer(drawn(&[5], 20, sampling.clone())).await.unwrap();
    let other = sandbox.answer(drawn(&[5], 20, sampling.clone())).await.unwrap();
    assert_ne!(first.started.seed, other.started.seed);
    let seeded = v1::Sampling { seed: Some(first.started.seed), ..sampling };
    assert_eq!(sandbox.answer(drawn(&[5], 20, seeded)).await.unwrap().ids, first.ids);
}

#[tokio::test]
async fn logprobs_are_of_the_raw_row() {
    let sandbox = Sandbox::new(2).await;
    let mut request =
        drawn(&[11], 6, v1::Sampling { temperature: Some(30.0), seed: Some(3), ..Default::default() });
    request.output = Some(v1::Output { logprobs: Some(4) });
    let answer = sandbox.answer(request).await.unwrap();
    let mut context = vec![11];
    let logprobs: Vec<_> = answer.deltas.iter().flat_map(|delta| &delta.logprobs).collect();
    assert_eq!(logprobs.len(), 6);
    for (id, logprob) in answer.ids.iter().zip(logprobs) {
        let raw = toy::raw(&context);
        let of = |id: u32| f64::from(raw[id as usize]) - toy::log_sum_exp(&raw, 1.0);
        let chosen = logprob.chosen.as_ref().unwrap();
        assert_eq!((chosen.token_id, chosen.logprob), (*id, of(*id)));
        assert_eq!(logprob.best.len(), 4);
        assert!(logprob.best.iter().all(|best| best.logprob == of(best.token_id)));
        assert!(logprob.best.is_sorted_by(|a, b| a.logprob >= b.logprob));
        context.push(*id);
    }
}

#[tokio::test]
async fn the_evidence_sink_sees_every_row() {
    use asterism_gateway::driver::EvidenceSink;
    use asterism_gateway::{Gateway, Listeners, Surroundings};
    use asterism_proto::list::pack;

    let (sender, seen) = std::sync::mpsc::channel();
    let shards = crate::sandbox::shards(2, |_| {}).await;
    let setup = crate::sandbox::Setup::new(crate::sandbox::addresses(&shards));
    let listeners = Listeners::bind(&setup.config).await.unwrap();
    let sink = EvidenceSink::new(move |row| {
        let _ = sender.send((row.request_id.to_owned(), row.evidence.position, row.evidence.ids.clone()));
    });
    let surroundings = Surroundings { sink: Some(sink), ..Surroundings::default() };
    let gateway = Gateway::start_in(surroundings, setup.config.clone(), listeners).await.unwrap();
    assert!(gateway.ready().await);
    let address = format!("http://{}", gateway.grpc_address);
    let mut client = v1::inference_client::InferenceClient::connect(address).await.unwrap();
    let request = GenerateRequest { request_id: "seen".to_owned(), ..ids([1, 2, 3], 4) };
    let stream = client.generate(request).await.unwrap().into_inner();
    let answer = crate::sandbox::Answer::read(stream).await.unwrap();
    let rows: Vec<_> = seen.try_iter().collect();
    let expected: Vec<_> =
        (2..).zip(&answer.ids).map(|(position, id)| ("seen".to_owned(), position, pack(&[*id]))).collect();
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn a_row_that_is_lost_is_made_anew_in_the_next_epoch() {
    let sandbox = Sandbox::new(2).await;
    let sampling = v1::Sampling { temperature: Some(20.0), seed: Some(7), ..Default::default() };
    sandbox.shards[1].control.send_modify(|control| control.rows_lost_until_join = 2);
    let answer = sandbox.answer(drawn(&[1, 2], 30, sampling.clone())).await.unwrap();
    assert_eq!(answer.ids, expected(&[1, 2], 30, &sampling));

    sandbox.shards[1].control.send_modify(|control| control.rows_lost_until_join = u32::MAX);
    let failed = sandbox.answer(drawn(&[1, 2], 30, sampling)).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal, "{failed}");
    assert!(failed.message().contains("the epoch is over"), "it says why: {failed}");
    assert!(sandbox.gateway.ready().await);
    assert_eq!(sandbox.answer(ids([1, 2], 8)).await.unwrap().ids, toy::greedy(&[1, 2], 8));
    sandbox.assert_clean().await;
}
