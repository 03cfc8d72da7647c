//! Ids to text, one id at a time: what SentencePiece and the reference's tokenizer class do, as a state machine.
//!
//! A *run* is what lies between special tokens. Each run loses one leading space (the dummy prefix of its encoding);
//! byte pieces join to characters; a special token ends the run and stands literally.

use crate::text::utf8::{Malformed, Utf8Carry};

/// What an id decodes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Surface {
    /// Text with its spaces.
    Text(Box<str>),
    /// One byte of a character.
    Byte(u8),
    /// Nothing, but it ends a row of bytes.
    Control(Box<str>),
    /// The mark of what is unknown.
    Unknown(Box<str>),
    /// A special token.
    Special(Box<str>),
}

/// The decoding half of a model.
pub(super) struct Surfaces {
    /// By id.
    pub surfaces: Vec<Surface>,
    /// Whether the first space of a run goes.
    pub dummy_prefix: bool,
}

/// The state between two ids.
#[derive(Clone, Debug)]
pub(in crate::text) struct Run {
    /// Whether a leading space would still go.
    at_start: bool,
    /// Whether the piece before lost one.
    lost_space: bool,
    /// Whether the run has text.
    has_text: bool,
    carry: Utf8Carry,
}

impl Run {
    pub fn new() -> Self {
        Self { at_start: true, lost_space: false, has_text: false, carry: Utf8Carry::new(Malformed::PerByte) }
    }
}

impl Surfaces {
    /// Takes one id in and appends what is certain now. An id without a piece changes nothing.
    pub fn push(&self, run: &mut Run, id: u32, out: &mut String) {
        let Some(surface) = usize::try_from(id).ok().and_then(|id| self.surfaces.get(id)) else { return };
        let before = out.len();
        if let Surface::Byte(byte) = surface {
            run.carry.push(&[*byte], out);
            run.has_text |= out.len() > before;
            return;
        }
        run.carry.flush(out);
        run.has_text |= out.len() > before;
        if run.lost_space || run.has_text {
            run.at_start = false;
        }
        run.lost_space = false;
        match surface {
            Surface::Special(text) => {
                out.push_str(text);
                *run = Run::new();
            }
            Surface::Text(text) => {
                let stripped = text.strip_prefix(' ').filter(|_| run.at_start && self.dummy_prefix);
                run.lost_space = stripped.is_some();
                let text = stripped.unwrap_or(text);
                out.push_str(text);
                run.has_text |= !text.is_empty();
            }
            Surface::Unknown(text) => {
                out.push_str(text);
                run.has_text |= !text.is_empty();
            }
            Surface::Control(_) | Surface::Byte(_) => {}
        }
    }

    /// No more ids come: appends what an incomplete character leaves.
    pub fn finish(&self, run: &mut Run, out: &mut String) {
        run.carry.flush(out);
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        let surface = usize::try_from(id).ok().and_then(|id| self.surfaces.get(id));
        matches!(surface, Some(Surface::Special(_)))
    }
}
