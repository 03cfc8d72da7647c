//! SentencePiece BPE models (`tokenizer.model`), as the reference's tokenizer classes use them.

mod decode;
mod encode;
mod proto;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;

use prost::Message;

pub(super) use decode::Run;
use decode::{Surface, Surfaces};
use encode::{Encoder, SPACE};
use proto::PieceType;

use super::error::TextError;
use super::special::{Part, SpecialTokens};
use super::tokenizer_config::{AddedToken, TokenizerConfig};

/// Longest piece, in bytes: the conversion looks at each place where a piece can be cut in two.
const LONGEST_PIECE: usize = 1024;

/// Where the reference's class puts a space that is in no piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spacing {
    /// Nowhere (TeleChat-52B).
    Plain,
    /// Before each run that a special token ends (the classes of the 12B and TeleChat2 models).
    BeforeEndedRun,
}

/// A loaded model.
pub(super) struct SentencePiece {
    encoder: Encoder,
    surfaces: Surfaces,
    special: SpecialTokens,
    spacing: Spacing,
}

impl SentencePiece {
    /// Decodes and checks a model file; special tokens come from the configuration, else from the model itself.
    pub fn load(path: &Path, bytes: &[u8], config: &TokenizerConfig) -> Result<Self, TextError> {
        let model = proto::Model::decode(bytes).map_err(|error| TextError::corrupt(path, error))?;
        let dummy_prefix = check(path, &model)?;
        let special = special_tokens(&model, config);
        let surfaces = (0u32..).zip(&model.pieces).map(|(id, piece)| surface(&model, &special, id, piece));
        let surfaces = surfaces.collect::<Result<Vec<_>, String>>();
        let surfaces = surfaces.map_err(|message| TextError::corrupt(path, message))?;
        let encoder = Encoder::new(&model, dummy_prefix).map_err(|error| TextError::corrupt(path, error))?;
        let spacing = match config.class.as_deref() {
            Some("TelechatTokenizer") => Spacing::BeforeEndedRun,
            _ => Spacing::Plain,
        };
        Ok(Self { encoder, surfaces: Surfaces { surfaces, dummy_prefix }, special, spacing })
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.surfaces.surfaces.len()
    }

    /// The ids of a text. Each part between special tokens is encoded by itself, with a dummy prefix of its own; the first has
    /// none where the text goes on from another.
    pub fn encode(&self, text: &str, goes_on: bool) -> tokenizers::Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        for (index, part) in self.special.split(text).into_iter().enumerate() {
            match part {
                Part::Special(id) => ids.push(id),
                Part::Text(text) => self.encoder.encode(&text, goes_on && index == 0, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The text of ids, exactly as the reference decodes them.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut out = String::with_capacity(ids.len() * 4);
        let mut run = Run::new();
        let mut run_start = 0;
        let mut run_is_empty = true;
        for id in ids.iter().copied().filter(|id| usize::try_from(*id).is_ok_and(|id| id < self.len())) {
            let special = self.surfaces.is_special(id);
            if special && !run_is_empty && self.spacing == Spacing::BeforeEndedRun {
                out.insert(run_start, ' ');
            }
            self.push(&mut run, id, &mut out);
            run_is_empty = special;
            if special {
                run_start = out.len();
            }
        }
        self.finish(&mut run, &mut out);
        out
    }

    /// One step of a streaming decode. It leaves out the space that some classes put before text already decoded.
    pub fn push(&self, run: &mut Run, id: u32, out: &mut String) {
        self.surfaces.push(run, id, out);
    }

    /// The end of a streaming decode.
    pub fn finish(&self, run: &mut Run, out: &mut String) {
        self.surfaces.finish(run, out);
    }

    /// The bytes of one id by itself, its space included; none for an id without a piece.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match usize::try_from(id).ok().and_then(|id| self.surfaces.surfaces.get(id)) {
            Some(Surface::Byte(byte)) => vec![*byte],
            Some(
                Surface::Text(text)
                | Surface::Control(text)
                | Surface::Unknown(text)
                | Surface::Special(text),
            ) => text.as_bytes().to_vec(),
            None => Vec::new(),
        }
    }
}

/// Refuses what the conversion cannot carry out exactly; answers whether texts get a dummy prefix.
fn check(path: &Path, model: &proto::Model) -> Result<bool, TextError> {
    let unsupported = |message: &str| Err(TextError::unsupported(path, message));
    if model.pieces.is_empty() {
        return Err(TextError::corrupt(path, "it holds no pieces"));
    }
    let trainer = model.trainer.clone().unwrap_or_default();
    let normalizer = model.normalizer.clone().unwrap_or_default();
    if trainer.model_type != Some(proto::BPE) {
        return unsupported("the model is not of type BPE");
    }
    if trainer.treat_whitespace_as_suffix {
        return unsupported("white space as a suffix");
    }
    if !normalizer.precompiled_charsmap.is_empty() {
        return unsupported("a normalizer other than identity");
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        return unsupported("removal of extra white space");
    }
    if !normalizer.escape_whitespaces.unwrap_or(true) {
        return unsupported("white space that is not escaped");
    }
    let mut texts = HashSet::with_capacity(model.pieces.len());
    for (id, piece) in model.pieces.iter().enumerate() {
        match piece.piece_type() {
            PieceType::Invalid => {
                return Err(TextError::corrupt(path, format!("piece {id} has an unknown type")));
            }
            PieceType::Unused => return unsupported("unused pieces"),
            _ if piece.text.is_empty() => {
                return Err(TextError::corrupt(path, format!("piece {id} is empty")));
            }
            _ if piece.text.len() > LONGEST_PIECE => {
                let message = format!("piece {id} has {} bytes, more than {LONGEST_PIECE}", piece.text.len());
                return Err(TextError::corrupt(path, message));
            }
            _ if !texts.insert(piece.text.as_str()) => {
                return Err(TextError::corrupt(path, format!("piece {id} is there twice: {:?}", piece.text)));
            }
            _ if piece.score.is_nan() => {
                return Err(TextError::corrupt(path, format!("the score of piece {id} is not a number")));
            }
            _ => {}
        }
    }
    if trainer.byte_fallback {
        let mut there = [false; 256];
        let bytes = model.pieces.iter().filter(|piece| piece.piece_type() == PieceType::Byte);
        for byte in bytes.filter_map(|piece| byte_of(&piece.text)) {
            there[usize::from(byte)] = true;
        }
        if let Some(byte) = there.iter().position(|there| !there) {
            return Err(TextError::corrupt(path, format!("the piece of byte {byte:#04x} is missing")));
        }
    }
    Ok(normalizer.add_dummy_prefix.unwrap_or(true))
}

/// The byte that a piece like `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The special tokens: those that the configuration lists or names, else the model's own.
fn special_tokens(model: &proto::Model, config: &TokenizerConfig) -> SpecialTokens {
    let trainer = model.trainer.clone().unwrap_or_default();
    let id_of = |content: &str| {
        (0u32..).zip(&model.pieces).find(|(_, piece)| piece.text == content).map(|(id, _)| id)
    };
    let own = |id: i32| {
        let id = u32::try_from(id).ok()?;
        let piece = model.pieces.get(usize::try_from(id).ok()?)?;
        let control = matches!(piece.piece_type(), PieceType::Control | PieceType::Unknown);
        let content = piece.text.clone();
        let token = AddedToken { content, lstrip: false, rstrip: false, single_word: false };
        control.then_some((token, id))
    };
    let named = [
        (&config.bos, trainer.bos_id.unwrap_or(1)),
        (&config.eos, trainer.eos_id.unwrap_or(2)),
        (&config.unk, trainer.unk_id.unwrap_or(0)),
        (&config.pad, trainer.pad_id.unwrap_or(-1)),
    ];
    let named = named.into_iter().filter_map(|(token, id)| match token {
        Some(token) => id_of(&token.content).map(|id| (token.clone(), id)),
        None => own(id),
    });
    let listed = config.added.iter().map(|(id, token)| (token.clone(), *id));
    SpecialTokens::new(listed.chain(named))
}

fn surface(
    model: &proto::Model,
    special: &SpecialTokens,
    id: u32,
    piece: &proto::Piece,
) -> Result<Surface, String> {
    if let Some(content) = special.content(id) {
        return Ok(Surface::Special(content.into()));
    }
    Ok(match piece.piece_type() {
        PieceType::Control => Surface::Control(piece.text.as_str().into()),
        PieceType::Unknown => {
            let surface = model.trainer.as_ref().and_then(|trainer| trainer.unk_surface.as_deref());
            Surface::Unknown(surface.unwrap_or(proto::UNK_SURFACE).into())
        }
        PieceType::Byte => {
            let byte = byte_of(&piece.text);
            Surface::Byte(byte.ok_or_else(|| format!("the byte piece {id} is {:?}", piece.text))?)
        }
        _ => Surface::Text(piece.text.replace(SPACE, " ").into()),
    })
}
