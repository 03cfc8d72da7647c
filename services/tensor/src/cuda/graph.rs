//! Sequences of operations that a card does as one.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, MutexGuard};

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::context::{Context, check, undisturbed};

/// More keys than this are not recorded: their operations are enqueued one by one.
const MOST_GRAPHS: usize = 256;

/// Recorded sequences of operations, by key. Empty on the CPU. What the operations work on must live as long.
#[derive(Debug, Default)]
pub struct Graphs {
    recorded: HashMap<u64, Graph>,
}

/// A sequence that can be launched.
#[derive(Debug)]
struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: launched by one thread at a time, through `&mut Graphs`.
unsafe impl Send for Graph {}

/// A stream that records instead of working; it ends that when it goes away.
struct Recording<'a> {
    card: &'a Card,
    open: bool,
    _undisturbed: MutexGuard<'static, ()>,
}

/// What was recorded.
struct Recorded(sys::CUgraph);

/// How many operations `work` enqueues, without doing them.
pub fn operations(
    card: &Card,
    work: &mut dyn FnMut() -> Result<(), TensorError>,
) -> Result<usize, TensorError> {
    let recording = Recording::begin(card)?;
    work()?;
    recording.end()?.operations()
}

// === impl Graphs ===

impl Graphs {
    /// Launches what was recorded under `key`, or records it first. Where recording fails, nothing has been done, and the
    /// next call tries again.
    pub(crate) fn replay<E: From<TensorError>>(
        &mut self,
        card: &Card,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(graph) = self.recorded.get(&key) {
            return Ok(graph.launch(card)?);
        }
        if self.recorded.len() >= MOST_GRAPHS {
            return work();
        }
        let graph = Graph::record(card, work)?;
        graph.launch(card)?;
        self.recorded.insert(key, graph);
        Ok(())
    }

    /// How many sequences are recorded.
    pub fn len(&self) -> usize {
        self.recorded.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.recorded.is_empty()
    }
}

// === impl Graph ===

impl Graph {
    fn record<E: From<TensorError>>(
        card: &Card,
        work: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let recording = Recording::begin(card)?;
        work()?;
        Ok(recording.end()?.instantiate(card)?)
    }

    fn launch(&self, card: &Card) -> Result<(), TensorError> {
        card.context().bind()?;
        card.context().count(|counters| &counters.graph_launches);
        // SAFETY: both live.
        check("cuGraphLaunch", unsafe { result::graph::launch(self.executable, card.compute.raw()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: made once, destroyed once; no launch is under way any more.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

// === impl Recording ===

impl<'a> Recording<'a> {
    fn begin(card: &'a Card) -> Result<Recording<'a>, TensorError> {
        let undisturbed = undisturbed();
        card.context().bind()?;
        card.context().count(|counters| &counters.captures);
        // Other threads may take memory and wait for their streams meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; were it recording already, the driver would refuse.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(card.compute.raw(), mode) })?;
        Ok(Recording { card, open: true, _undisturbed: undisturbed })
    }

    fn end(mut self) -> Result<Recorded, TensorError> {
        self.open = false;
        self.stop()
    }

    /// Ends it, whatever was done meanwhile: something forbidden makes the driver refuse what was recorded.
    fn stop(&self) -> Result<Recorded, TensorError> {
        let mut graph = ptr::null_mut();
        // SAFETY: recording was begun on this stream; the driver writes a handle, or none.
        let ended = unsafe { sys::cuStreamEndCapture(self.card.compute.raw(), &mut graph) };
        let recorded = Recorded(graph);
        check("cuStreamEndCapture", ended.result())?;
        Ok(recorded)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.open {
            // Why the work failed is already being told.
            let _ = self.stop();
        }
    }
}

// === impl Recorded ===

impl Recorded {
    fn operations(&self) -> Result<usize, TensorError> {
        let mut count = 0;
        // SAFETY: the graph was recorded and lives; without room for nodes the driver writes their number alone.
        let counted = unsafe { sys::cuGraphGetNodes(self.0, ptr::null_mut(), &mut count) };
        check("cuGraphGetNodes", counted.result())?;
        Ok(count)
    }

    fn instantiate(&self, card: &Card) -> Result<Graph, TensorError> {
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was recorded and lives.
        let executable = check("cuGraphInstantiate", unsafe { result::graph::instantiate(self.0, flags) })?;
        let graph = Graph { context: Arc::clone(card.context()), executable };
        // SAFETY: both live.
        check("cuGraphUpload", unsafe { result::graph::upload(executable, card.compute.raw()) })?;
        Ok(graph)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: recorded once, destroyed once; what was instantiated from it does not need it.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}
