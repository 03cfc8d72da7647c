//! Time of a step's tokens in the journal, beside a bare write of as many bytes to a file of the same disk:
//! `cargo bench -p asterism-gateway --bench journal [-- folder]`.
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_gateway::sessions::TurnId;
use asterism_gateway::sessions::journal::{FolderDisk, Journal, Settings};
use asterism_gateway::sessions::store::Appended;

/// How long each case is measured.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tokens of a turn, after which another begins in its place.
const TURN_TOKENS: u32 = 1000;

/// `[a folder on the disk]`
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let folder = tempfile::tempdir_in(folder.unwrap_or_else(|| ".".to_owned())).unwrap();
    for turns in [16, 1000] {
        for pause in [Duration::ZERO, Duration::from_millis(5)] {
            let bytes = record_bytes(turns);
            println!("\n{turns} turns, a token each, {bytes} bytes a step, {pause:?} between steps");
            let bare = bare(folder.path(), bytes, pause).await;
            let journal = journal(folder.path(), turns, pause).await;
            report("bare write", &bare);
            report("journal", &journal);
        }
    }
}

/// A record of a token for each of so many turns.
fn record_bytes(turns: usize) -> usize {
    24 + 29 * turns
}

async fn bare(folder: &Path, bytes: usize, pause: Duration) -> Vec<Duration> {
    let bytes = vec![7; bytes];
    let mut file: File = OpenOptions::new().create(true).append(true).open(folder.join("bare")).unwrap();
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < PATIENCE {
        let step = Instant::now();
        file.write_all(&bytes).unwrap();
        times.push(step.elapsed());
        rest(pause).await;
    }
    file.set_len(0).unwrap();
    times
}

async fn journal(folder: &Path, turns: usize, pause: Duration) -> Vec<Duration> {
    let disk = Arc::new(FolderDisk::open(folder.join(format!("{turns}-{}", pause.as_millis()))).unwrap());
    let (journal, _) = Journal::open(disk, Settings::default()).unwrap();
    let (start, mut times) = (Instant::now(), Vec::new());
    let (mut running, mut first) = (Vec::new(), 0);
    while start.elapsed() < PATIENCE {
        if first % TURN_TOKENS == 0 {
            running.drain(..).for_each(|turn| journal.forget(turn));
            running.extend((0..turns).map(|_| TurnId::fresh()));
            first = 0;
        }
        let tokens = running.iter().map(|&turn| Appended { turn, first, token_ids: vec![first] }).collect();
        let step = Instant::now();
        journal.append(tokens).await.unwrap();
        times.push(step.elapsed());
        first += 1;
        rest(pause).await;
    }
    times
}

async fn rest(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

fn report(name: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let total: Duration = times.iter().sum();
    let mean = total.as_secs_f64() * 1e6 / times.len() as f64;
    println!(
        "{name:>12}: {mean:8.1} µs a step ({:.0} a second), half within {:.1}, 99 of 100 within {:.1}, all within {:.1}",
        1e6 / mean,
        at(0.5),
        at(0.99),
        at(1.0),
    );
}
