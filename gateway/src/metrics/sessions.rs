//! What is counted of sessions.

use prometheus_client::metrics::counter::Counter;

use super::Names;

/// Turns, and how well their histories are found again.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    turns: Counter,
    histories_differ: Counter,
    interrupted: Counter,
}

impl SessionMetrics {
    pub(super) fn named(names: &mut Names) -> Self {
        let all = Self::default();
        names.own("session_turns", "Turns that were accepted", &all.turns);
        names.own(
            "session_histories_differ",
            "Accepted turns whose prompt differs from prompt and answer of the turn before",
            &all.histories_differ,
        );
        names.own("session_turns_interrupted", "Turns that could not go on", &all.interrupted);
        all
    }

    /// A turn was accepted; its prompt may differ from prompt and answer before.
    pub fn turn(&self, differs: bool) {
        self.turns.inc();
        if differs {
            self.histories_differ.inc();
        }
    }

    /// A turn could not go on.
    pub fn interrupted(&self) {
        self.interrupted.inc();
    }
}
