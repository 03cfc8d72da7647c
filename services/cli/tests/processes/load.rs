//! `asterism bench load` against services in processes of their own.

use serde_json::Value;

use super::command::{Service, asterism, failure, output_with};
use super::golden::Golden;

#[tokio::test]
async fn a_load_reports_in_the_terminal_as_a_page_and_for_machines() {
    let golden = Golden::tiny();
    let listen = ["--threads", "1", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let mut up =
        Service::start(&[&["up", "--model", golden.model(), "--sessions", "memory"][..], &listen].concat());
    let target = format!("grpc://{}", up.announced("grpc").await);
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let (json, html) = (file("load.json"), file("load.html"));
    let load =
        ["--rate", "100", "--requests", "10", "--turns", "2", "--prompt", "20", "--answer", "uniform:2,5"];
    let out = ["--seed", "7", "--slo", "ttft=1h", "--json", &json, "--html", &html, "--target", &target];
    let output = output_with(asterism(&[&["bench", "load"][..], &load, &out].concat()), "").await;
    let table = String::from_utf8(output.stdout.clone()).expect("text");
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    for line in [
        "requests    10 answered, 0 failed",
        "open loop, Poisson, 100/s; 10 requests",
        "seed 7",
        "to first token",
    ] {
        assert!(table.contains(line), "{line}: {table}");
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("a file")).expect("JSON");
    assert_eq!(report["requests"]["answered"], 10, "{report}");
    assert_eq!(report["goodput"]["share"], 1.0, "{report}");
    assert!(std::fs::read_to_string(&html).expect("a file").ends_with("</html>\n"));
    up.stopped().await;
}

#[tokio::test]
async fn a_load_that_cannot_be_made_says_why() {
    let output = output_with(asterism(&["bench", "load", "--target", "http://127.0.0.1:1"]), "").await;
    let error = failure(&output);
    assert!(error.contains("no server answers at http://127.0.0.1:1"), "{error}");
    let nowhere = ["bench", "load", "--json", "/no/such/folder/load.json"];
    let error = failure(&output_with(asterism(&nowhere), "").await);
    assert!(error.contains("cannot write /no/such/folder/load.json"), "{error}");
    // Wrong arguments are told as all commands tell them.
    let output = output_with(asterism(&["bench", "load", "--prompt", "long"]), "").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("'--prompt <LENGTH>'"));
}
