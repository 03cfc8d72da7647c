//! Sequences of operations that a card does as one.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::{Card, Context, check};

/// Recorded sequences of operations, by key. Empty on the CPU.
#[derive(Debug, Default)]
pub struct Graphs {
    recorded: HashMap<u64, Graph>,
}

#[derive(Debug)]
struct Graph {
    context: Arc<Context>,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: launched by one thread at a time, through `&mut Graphs`.
unsafe impl Send for Graph {}

impl Graphs {
    /// Launches what was recorded under `key`, or records it first.
    pub(crate) fn replay<E: From<TensorError>>(
        &mut self,
        card: &Card,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.recorded.contains_key(&key) {
            let graph = Graph::record(card, work)?;
            self.recorded.insert(key, graph);
        }
        match self.recorded.get(&key) {
            Some(graph) => Ok(graph.launch(card)?),
            None => work(),
        }
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

impl Graph {
    fn record<E: From<TensorError>>(card: &Card, work: &mut dyn FnMut() -> Result<(), E>) -> Result<Graph, E> {
        card.context().bind()?;
        let stream = card.compute.raw();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and nothing is being recorded on it.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(stream, mode) })?;
        let worked = work();
        // SAFETY: begun above. It ends whatever happened in between.
        let graph = check("cuStreamEndCapture", unsafe { result::stream::end_capture(stream) });
        worked?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        // SAFETY: the graph was just recorded.
        let executable = check("cuGraphInstantiate", unsafe { result::graph::instantiate(graph, flags) })?;
        Ok(Graph { context: Arc::clone(card.context()), graph, executable })
    }

    fn launch(&self, card: &Card) -> Result<(), TensorError> {
        card.context().count(|counters| &counters.graph_launches);
        card.context().bind()?;
        // SAFETY: both live.
        check("cuGraphLaunch", unsafe { result::graph::launch(self.executable, card.compute.raw()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
            // SAFETY: as above.
            let _ = unsafe { result::graph::destroy(self.graph) };
        }
    }
}
