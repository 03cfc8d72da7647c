//! One gateway drives a pipeline at a time.

use super::command::{Service, bounded};
use super::golden::Golden;
use super::pipeline::{gateway, shard};
use super::talk;

#[tokio::test]
async fn a_second_gateway_is_refused_and_takes_over_when_told_to() {
    let golden = Golden::tiny();
    let (_shard, address) = shard(golden.model(), 0, 1).await;
    let mut holder = Service::start(&gateway(golden.model(), &address));
    let held = holder.announced("grpc").await;
    talk::ready(&held).await;
    let mut first = talk::connect(&held).await;

    let mut second = Service::start(&gateway(golden.model(), &address));
    let mut refused = talk::connect(&second.announced("grpc").await).await;
    bounded(async {
        loop {
            let answer = talk::generate(&mut refused, &[5], 1.0, 1).await;
            let status = answer.expect_err("another gateway holds the pipeline");
            assert!(talk::is_unavailable(&status), "{status}");
            // Until it has asked the shard it says that it has no answer yet.
            if status.message().contains("held by another gateway") {
                break;
            }
        }
    })
    .await;
    talk::compare(&mut first, &golden).await;
    drop(refused);
    second.stopped().await;

    let mut third = Service::start(&[&gateway(golden.model(), &address)[..], &["--take-over"]].concat());
    let taken = third.announced("grpc").await;
    talk::ready(&taken).await;
    let mut taken = talk::connect(&taken).await;
    talk::compare(&mut taken, &golden).await;
    let status = talk::generate(&mut first, &[5], 1.0, 1).await.expect_err("the pipeline is another's now");
    assert!(talk::is_unavailable(&status), "{status}");
    drop((first, taken));
    third.stopped().await;
    holder.stopped().await;
}
