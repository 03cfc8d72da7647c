//! Whole loads on the tiny checkpoint, over real sockets.

use std::net::SocketAddr;

use super::target::FailureKind;
use super::*;
use crate::system::{Plan, System};
use clap::Parser as _;

#[path = "../../../../../tests/src/speaking.rs"]
mod speaking;

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    load: Arguments,
}

fn arguments(line: &str) -> Result<Arguments, clap::Error> {
    Command::try_parse_from(["load"].into_iter().chain(line.split_whitespace())).map(|command| command.load)
}

/// A served model; its folder must stay as long as it.
async fn serve() -> (System, tempfile::TempDir) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let folder = speaking::speaking(&golden, 2);
    let plan = Plan { threads: Some(NonZeroUsize::MIN), ..Plan::new(folder.path(), NonZeroUsize::MIN) };
    let system = System::start(&plan).await.expect("it starts");
    assert!(system.ready().await);
    (system, folder)
}

async fn load(address: SocketAddr, scheme: &str, line: &str) -> Report {
    let arguments = arguments(&format!("--target {scheme}://{address} {line}")).expect("arguments");
    measure(&arguments, CancellationToken::new()).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_over_grpc_and_http() {
    let (system, _folder) = serve().await;
    closed_loop_with_ids(system.grpc()).await;
    open_loop_with_follow_up_turns(system.grpc()).await;
    chat_over_http(system.http()).await;
    chat_over_grpc(system.grpc()).await;
    a_stop_ends_a_load(system.grpc()).await;
    wrong_requests_are_counted(system.grpc()).await;
    terms_arrive(system.grpc(), system.http()).await;
    eight_turns_after_a_shared_system_prompt(system.grpc()).await;
    system.until(std::future::ready(())).await.expect("it ends in order");
}

async fn closed_loop_with_ids(grpc: SocketAddr) {
    let report =
        load(grpc, "grpc", "--concurrency 3 --requests 12 --warm-up 2 --prompt 20 --answer 6 --seed 1").await;
    assert_eq!((report.requests.warm_up, report.requests.measured, report.requests.failed), (2, 12, 0));
    assert_eq!((report.tokens.prompt, report.tokens.answer), (12 * 20, 12 * 6), "exact lengths");
    assert!(report.tokens.counted_by_server && report.window_s > 0.0);
    let latencies = &report.latency_ms;
    assert_eq!((latencies.ttft.count, latencies.e2e.count), (12, 12));
    assert!(latencies.ttft.p50 > 0.0 && latencies.ttft.max <= latencies.e2e.max);
    assert!(report.timeline.slices.iter().all(|slice| slice.running <= 3));
    assert!(report.notes.is_empty(), "{:?}", report.notes);
}

async fn open_loop_with_follow_up_turns(grpc: SocketAddr) {
    let line = "--rate 200 --requests 12 --turns 3 --system 40 --prompt uniform:5,9 --answer 4 --seed 2 \
                --slo ttft=1h,e2e=1h";
    let report = load(grpc, "grpc", line).await;
    assert_eq!((report.requests.measured, report.requests.answered), (12, 12));
    assert_eq!(report.turns.iter().map(|turn| turn.answered).collect::<Vec<_>>(), [4, 4, 4]);
    let prompts: Vec<f64> = report.turns.iter().map(|turn| turn.prompt_tokens).collect();
    assert!((45.0..=49.0).contains(&prompts[0]), "{prompts:?}");
    // Each turn brings the last answer and its own words.
    assert!(prompts.windows(2).all(|pair| (9.0..=13.0).contains(&(pair[1] - pair[0]))), "{prompts:?}");
    assert_eq!(report.goodput.map(|goodput| goodput.share), Some(1.0));
}

async fn chat_over_http(http: SocketAddr) {
    let line = "--concurrency 2 --requests 8 --turns 2 --system 60 --prompt 30 --answer 8 --seed 3";
    let report = load(http, "http", line).await;
    assert_eq!((report.requests.answered, report.requests.failed), (8, 0), "{:?}", report.failures);
    assert_eq!(report.target.prompts, "chat");
    assert_eq!(report.tokens.answer, 8 * 8, "answers go on past an end id");
    assert!(report.tokens.counted_by_server, "the usage is asked for");
    // A byte is a token of this model: about 6 of them a word, counted by the server before.
    let first = report.turns[0].prompt_tokens;
    assert!((80.0..=140.0).contains(&first), "60 and 30 tokens and a template: {first}");
    assert!(report.turns[1].prompt_tokens > first + 30.0);
}

async fn chat_over_grpc(grpc: SocketAddr) {
    let report = load(grpc, "grpc", "--form chat --requests 2 --prompt 30 --answer 4 --seed 4").await;
    assert_eq!((report.requests.answered, report.tokens.answer), (2, 8));
    let report = load(grpc, "grpc", "--form text --requests 2 --prompt 30 --answer 4 --seed 4").await;
    assert!((20..=80).contains(&report.tokens.prompt), "{}", report.tokens.prompt);
}

async fn a_stop_ends_a_load(grpc: SocketAddr) {
    let arguments =
        arguments(&format!("--target grpc://{grpc} --rate 0.001 --duration 1h")).expect("arguments");
    let stop = CancellationToken::new();
    stop.cancel();
    let report = measure(&arguments, stop).await.expect("a report");
    assert!(report.interrupted && report.requests.measured == 0);
    assert!(report.to_string().contains("stopped before its end"));
}

async fn wrong_requests_are_counted(grpc: SocketAddr) {
    // More than the model's context.
    let report = load(grpc, "grpc", "--requests 3 --concurrency 1 --prompt 9000 --answer 4 --seed 5").await;
    assert_eq!((report.requests.answered, report.requests.failed), (0, 3));
    assert_eq!(report.failures[0].kind, FailureKind::Refused, "{:?}", report.failures);
    assert_eq!(report.failures[0].count, 3);
}

async fn terms_arrive(grpc: SocketAddr, http: SocketAddr) {
    for (address, scheme) in [(grpc, "grpc"), (http, "http")] {
        let line = "--turns 2 --requests 4 --concurrency 1 --prompt 40 --answer 4 --form chat --seed 6 \
                    --tenant default --priority -3 --deadline 1h";
        let report = load(address, scheme, line).await;
        assert_eq!((report.requests.answered, report.requests.failed), (4, 0), "{:?}", report.failures);
        assert!(report.turns[1].cached_tokens > 0.0, "{scheme}: the next turn begins like the one before");
        let report = load(address, scheme, &format!("{line} --bypass-cache")).await;
        assert_eq!(report.turns[1].cached_tokens, 0.0, "{scheme}");
        let line = format!("--target {scheme}://{address} --form chat --tenant nobody");
        let nobody = arguments(&line).expect("arguments");
        let refused = measure(&nobody, CancellationToken::new());
        let refused = refused.await.map(|report| report.window_s).expect_err("there is no such tenant");
        assert!(refused.to_string().contains("there is no tenant \"nobody\""), "{scheme}: {refused}");
    }
}

async fn eight_turns_after_a_shared_system_prompt(grpc: SocketAddr) {
    let line = "--system 1000 --turns 8 --prompt 20 --answer 12 --requests 16 --concurrency 1 --seed 7";
    let report = load(grpc, "grpc", line).await;
    assert_eq!((report.requests.answered, report.requests.failed), (16, 0), "{:?}", report.failures);
    // By hand: turn t has the system prompt, t questions and t - 1 answers, and all but its question was said before; only
    // the first turn of the second conversation finds the system prompt alone.
    let prompt = |turn: u64| 1000 + 20 * turn + 12 * (turn - 1);
    let said = |turn: u64| prompt(turn) - 20;
    let repeated: u64 = (2..=8).map(|turn| 2 * said(turn)).sum::<u64>() + 1000;
    let prompts: u64 = (1..=8).map(|turn| 2 * prompt(turn)).sum();
    assert_eq!((report.tokens.prompt, report.tokens.repeated), (prompts, repeated));
    // Whole blocks of 16 rows are cached, and an answer's last token has never been a row.
    let cached: u64 = (2..=8).map(|turn| 2 * ((said(turn) - 1) / 16 * 16)).sum::<u64>() + 1000 / 16 * 16;
    assert_eq!(report.tokens.cached, cached);
    let reuse = report.reuse.as_ref().expect("conversations repeat");
    assert_eq!(reuse.cold_requests, 1, "the very first");
    let by_cold = reuse.turn_2_by_cold.expect("there are both");
    assert!((by_cold - reuse.turn_2_ttft_p50_ms / reuse.cold_ttft_p50_ms).abs() < 1e-9 && by_cold > 0.0);
    let table = report.to_string();
    let shares = (100.0 * cached as f64 / prompts as f64, 100.0 * repeated as f64 / prompts as f64);
    let line = format!("reuse       {:.1} % of the prompts cached, {:.1} % said before", shares.0, shares.1);
    assert!(table.contains(&line) && table.contains("of the time of a cold turn 1"), "{line} in\n{table}");
}

#[tokio::test]
async fn what_cannot_be_reached_is_named() {
    for (line, named) in [
        ("--target grpc://127.0.0.1:1", "no server answers at grpc://127.0.0.1:1"),
        ("--target http://127.0.0.1:1", "no server answers at http://127.0.0.1:1"),
        ("--target 127.0.0.1:7050", "--target: \"127.0.0.1:7050\" begins with neither"),
        ("--target https://127.0.0.1", "--target"),
        ("--target grpc://nowhere", "the port is missing"),
        ("--target http://127.0.0.1:1 --form ids --turns 2", "--turns"),
        ("--target http://127.0.0.1:1 --model m --form ids", "--vocab"),
        ("--duration 0s", "--duration"),
        ("--timeout 0s", "--timeout"),
        ("--deadline 0s", "--deadline"),
    ] {
        let arguments = arguments(line).unwrap_or_else(|error| panic!("{error}"));
        let error = measure(&arguments, CancellationToken::new()).await.map(|report| report.window_s);
        let error = error.expect_err(line).to_string();
        assert!(error.contains(named), "{line}: {error}");
    }
}

#[test]
fn nonsense_is_refused_with_its_flag() {
    for (line, flag, value) in [
        ("--rate 0", "--rate", "\"0\""),
        ("--rate nan", "--rate", "\"nan\""),
        ("--rate fast", "--rate", "\"fast\""),
        ("--concurrency 0", "--concurrency", "0"),
        ("--rate 1 --concurrency 2", "--rate", "--concurrency"),
        ("--requests 0", "--requests", "0"),
        ("--requests 5 --duration 5s", "--requests", "--duration"),
        ("--duration soon", "--duration", "\"soon\""),
        ("--warm-up soon", "--warm-up", "\"soon\""),
        ("--prompt uniform:9,3", "--prompt", "9 is more than 3"),
        ("--answer lognormal:1", "--answer", "two or three"),
        ("--turns 0", "--turns", "0"),
        ("--system 1048577", "--system", "1048577"),
        ("--limit 0", "--limit", "0"),
        ("--think later", "--think", "\"later\""),
        ("--prompt 0", "--prompt", "0"),
        ("--prompt lognormal:0,1", "--prompt", "0"),
        ("--answer uniform:few,many", "--answer", "few"),
        ("--slo ttft=soon", "--slo", "soon"),
        ("--timeout soon", "--timeout", "\"soon\""),
        ("--vocab 0", "--vocab", "0"),
        ("--slo itl=5ms", "--slo", "\"itl\""),
        ("--extra [1]", "--extra", "no JSON object"),
        ("--temperature=-1", "--temperature", "-1"),
        ("--tenant gold=3", "--tenant", "\"gold=3\""),
        ("--tenant=", "--tenant", "\"\""),
        ("--priority 101", "--priority", "101"),
        ("--priority -101", "--priority", "-101"),
        ("--priority high", "--priority", "high"),
        ("--deadline soon", "--deadline", "\"soon\""),
        ("--form words", "--form", "words"),
        ("--arrivals bursty", "--arrivals", "bursty"),
    ] {
        let error = arguments(line).expect_err(line).to_string();
        assert!(error.contains(flag) && error.contains(value), "{line}: {error}");
    }
}
