//! From embedded source to machine code for the card.
//!
//! A theme is compiled by NVRTC the first time that it is needed on a kind of card; later starts find its code in the
//! cache, under a hash of the source, the definitions, the target, and the versions of NVRTC and of ourselves.

mod nvrtc;
mod theme;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::TensorError;
use crate::cuda::cache::{Cache, Key};

pub use nvrtc::Target;
pub use theme::{Build, Define, Theme};

/// What it took to get the kernels' machine code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelReport {
    /// How often NVRTC compiled a theme.
    pub compiled: u32,
    /// How often the code was found in the cache.
    pub cached: u32,
    /// The time of both. NVRTC compiles one theme at a time, whatever the threads.
    pub time: Duration,
    /// Why code could not be kept, so that the next start compiles again.
    pub not_kept: Option<String>,
}

/// Compiles for one kind of card.
#[derive(Debug)]
pub struct Compiler {
    target: Target,
    nvrtc: (u32, u32),
    cache: Option<Cache>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// All code that was made.
    made: HashMap<Build, Arc<[u8]>>,
    report: KernelReport,
}

impl Compiler {
    /// For cards of this compute capability, with NVRTC of this version.
    pub fn new(
        capability: (u32, u32),
        nvrtc: (u32, u32),
        cache: Option<PathBuf>,
    ) -> Result<Compiler, TensorError> {
        let target = Target::of(capability, &nvrtc::architectures()?)?;
        Ok(Compiler { target, nvrtc, cache: cache.map(Cache::new), state: Mutex::default() })
    }

    /// Machine code (or PTX) of a theme.
    pub fn image(&self, theme: Theme, defines: &[Define]) -> Result<Arc<[u8]>, TensorError> {
        let build = (theme, defines.to_vec());
        if let Some(image) = self.state().made.get(&build) {
            return Ok(Arc::clone(image));
        }
        let began = Instant::now();
        let made = self.make(&build);
        let mut state = self.state();
        state.report.time += began.elapsed();
        let image: Arc<[u8]> = made?.into();
        state.made.insert(build, Arc::clone(&image));
        Ok(image)
    }

    /// What was done so far.
    pub fn report(&self) -> KernelReport {
        self.state().report.clone()
    }

    /// Out of the cache, or compiled and then kept.
    fn make(&self, (theme, defines): &Build) -> Result<Vec<u8>, TensorError> {
        let source = source(*theme);
        let options = self.options(defines);
        let Some(cache) = &self.cache else {
            return self.compile(*theme, &source, &options);
        };
        let (major, minor) = self.nvrtc;
        let versions = format!("nvrtc {major}.{minor} asterism {}", env!("CARGO_PKG_VERSION"));
        let key = Key::of(&[source.as_bytes(), options.join(" ").as_bytes(), versions.as_bytes()]);
        let kind = kind(*theme, &self.target, defines);
        if let Some(image) = cache.get(&kind, &key) {
            self.state().report.cached += 1;
            return Ok(image);
        }
        let image = self.compile(*theme, &source, &options)?;
        if let Err(error) = cache.put(&kind, &key, &image) {
            self.state().report.not_kept = Some(format!("{}: {error}", cache.folder().display()));
        }
        Ok(image)
    }

    fn compile(&self, theme: Theme, source: &str, options: &[String]) -> Result<Vec<u8>, TensorError> {
        self.state().report.compiled += 1;
        nvrtc::compile(source, options, &self.target)
            .map(|compiled| compiled.image)
            .map_err(|log| TensorError::Kernel { theme: theme.name(), log })
    }

    fn options(&self, defines: &[Define]) -> Vec<String> {
        let mut options = vec![self.target.option(), "-std=c++17".to_owned()];
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that is compiled for a theme.
fn source(theme: Theme) -> String {
    theme.files().iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// The kind of entry in the cache: one for each theme, target and set of definitions.
fn kind(theme: Theme, target: &Target, defines: &[Define]) -> String {
    let mut kind = format!("kernels-{}-{}", theme.name(), target.name());
    for (name, value) in defines {
        kind.push_str(&format!("-{}-{value}", name.to_lowercase()));
    }
    kind
}

#[cfg(test)]
mod tests;
