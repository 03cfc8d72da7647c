//! What is wrong is said plainly, and the exit code tells.

use super::command::{Service, asterism, failure, output_with};
use super::golden::{self, Golden};
use super::pipeline::{gateway, shard};

async fn said(arguments: &[&str]) -> String {
    failure(&output_with(asterism(arguments), "").await)
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_told_at_once() {
    let error = said(&["shard", "--stage", "first", "--memory", "much", "--listen", "here"]).await;
    for named in ["model is not set", "first", "much", "here"] {
        assert!(error.contains(named), "{named}: {error}");
    }
    let wrong = ["gateway", "--model", "/no/such/model", "--shards", "nowhere", "--max-context", "0"];
    let error = said(&wrong).await;
    for named in ["/no/such/model", "nowhere", "max_context"] {
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[tokio::test]
async fn a_model_that_is_none_is_named() {
    let error = said(&["shard", "--model", "/no/such/model", "--stage", "0", "--stages", "1"]).await;
    assert!(error.contains("/no/such/model"), "{error}");

    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "mystery"}"#).expect("written");
    let path = folder.path().join("config.json");
    let error = said(&["split", "--model", path.to_str().expect("text"), "--devices", "40GB"]).await;
    assert!(error.contains("unknown architecture") && error.contains("mystery"), "{error}");
}

#[tokio::test]
async fn chat_without_a_gateway_says_so() {
    let error = said(&["chat", "--address", "127.0.0.1:1"]).await;
    assert!(error.contains("no gateway answers at 127.0.0.1:1"), "{error}");
    let error = said(&["chat", "--address", "nowhere"]).await;
    assert!(error.contains("nowhere"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = held.local_addr().expect("an address").to_string();
    let golden = Golden::tiny();
    let error =
        said(&["shard", "--model", golden.model(), "--stage", "0", "--stages", "1", "--listen", &address])
            .await;
    assert!(error.contains(&address), "{error}");
}

#[tokio::test]
async fn shards_that_do_not_fit_together_end_the_gateway() {
    let golden = Golden::tiny();
    let (_first, first) = shard(golden.model(), 0, 2).await;
    let (_again, again) = shard(golden.model(), 0, 2).await;
    let mut door = Service::start(&gateway(golden.model(), &format!("{first},{again}")));
    let (code, error) = door.ended().await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("stage"), "{error}");
}

#[tokio::test]
async fn telechat_52b_is_split_as_it_fits() {
    let config = golden::root().join("telechat-52b/config.json");
    if !config.is_file() {
        println!("SKIPPED: the official config of TeleChat-52B is not in {}", golden::root().display());
        return;
    }
    let config = config.to_str().expect("text");
    for devices in ["4x40GB", "2x80GB", "1x141GB"] {
        let output = output_with(asterism(&["split", "--model", config, "--devices", devices]), "").await;
        let table = String::from_utf8(output.stdout).expect("text");
        assert!(
            output.status.success() && table.contains("64 layers, 52.8 B parameters"),
            "{devices}: {table}"
        );
        assert!(table.contains("KV"), "{devices}: {table}");
    }
    for devices in ["2x40GB", "1x80GB"] {
        let error = said(&["split", "--model", config, "--devices", devices]).await;
        assert!(error.contains("do not fit") && error.contains("GiB"), "{devices}: {error}");
    }
}
