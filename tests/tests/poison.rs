//! A row whose numbers are broken ends its own sequence and nothing else.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop and say where")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use asterism_shard::ComputeType;
use asterism_tests::answer::{self, greedy};
use asterism_tests::cluster::{Cluster, Setup};
use asterism_tests::golden::tiny_52b;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tonic::Code;

const POISON: usize = 300;

/// A copy of a checkpoint in which the embedding of one id is NaN.
fn poisoned_copy(checkpoint: &Path, copy: &Path) {
    fs::copy(checkpoint.join("config.json"), copy.join("config.json")).expect("the config");
    let bytes = fs::read(checkpoint.join("model.safetensors")).expect("the weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("the weights parse");
    let name = "transformer.wte.weight";
    let embedding = tensors.tensor(name).expect("the embedding");
    let row = embedding.data().len() / embedding.shape()[0];
    let mut data = embedding.data().to_vec();
    // 0xffff is a NaN in bf16, f16 and f32.
    data[POISON * row..(POISON + 1) * row].fill(0xff);
    let poisoned =
        TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &data).expect("the same shape");
    let mut all: HashMap<String, TensorView<'_>> =
        tensors.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    all.insert(name.to_owned(), poisoned);
    safetensors::serialize_to_file(all, None, &copy.join("model.safetensors")).expect("the copy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_nan_ends_its_own_sequence_only() {
    let folder = tempfile::tempdir().expect("a folder");
    poisoned_copy(&tiny_52b(), folder.path());
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        // A pool so small that the poisoned blocks are used again by the next sequence.
        let setup = Setup { compute, max_context: Some(128), ..Setup::new(folder.path(), 2) };
        let clean = Cluster::start(Setup { checkpoint: tiny_52b(), ..setup.clone() }).await;
        let cluster = Cluster::start(setup).await;
        let prompt: Vec<u32> = (1..60).collect();
        let poison: Vec<u32> = (1..60).map(|id| if id == 30 { POISON as u32 } else { id }).collect();
        for round in 0..4 {
            let client = cluster.client().await;
            let bad = answer::generate(client.clone(), greedy("bad", &poison, 20));
            let good = answer::generate(client.clone(), greedy("good", &prompt, 20));
            let (bad, good) = futures::join!(bad, good);
            let failure = bad.expect_err("its logits are no numbers");
            assert_eq!(failure.code(), Code::Internal, "{failure}");
            let alone = clean.generate(greedy("good", &prompt, 20)).await.expect("an answer");
            assert_eq!(good.expect("the other goes on").ids, alone.ids, "round {round} in {compute:?}");
        }
    }
}
