//! Text to ids: SentencePiece's BPE, carried out by the `tokenizers` crate's.
//!
//! SentencePiece merges the two neighbours whose *joined text* is the piece of the best score, wherever it was cut; the
//! `tokenizers` crate merges listed pairs by rank. So each piece gives one merge per cut into two pieces, ranked by the
//! piece's score. User-defined pieces are matched first (the longest at each place) and never merge, so the BPE sees
//! only what lies between them; characters without a piece become bytes.

use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::proto::{self, PieceType};

/// SentencePiece's mark for a space.
pub(super) const SPACE: char = '\u{2581}';

/// The encoding half of a model.
pub(super) struct Encoder {
    bpe: BPE,
    user_defined: UserDefined,
    dummy_prefix: bool,
}

impl Encoder {
    /// Converts a checked model: BPE, identity normalizer, all byte pieces there if it falls back to bytes.
    pub fn new(model: &proto::Model, dummy_prefix: bool) -> tokenizers::Result<Self> {
        let of_type = |wanted: PieceType| {
            let pieces = (0u32..).zip(&model.pieces);
            pieces.filter(move |(_, piece)| piece.piece_type() == wanted)
        };
        let mut vocab: Vocab =
            of_type(PieceType::Normal).map(|(id, piece)| (piece.text.clone(), id)).collect();
        let merges = merges(&vocab, model);
        let mut builder = BPE::builder().fuse_unk(true).cache_capacity(0);
        if model.trainer.as_ref().is_some_and(|trainer| trainer.byte_fallback) {
            vocab.extend(of_type(PieceType::Byte).map(|(id, piece)| (piece.text.clone(), id)));
            builder = builder.byte_fallback(true);
        } else if let Some((id, piece)) = of_type(PieceType::Unknown).next() {
            vocab.insert(piece.text.clone(), id);
            builder = builder.unk_token(piece.text.clone());
        }
        Ok(Self {
            bpe: builder.vocab_and_merges(vocab, merges).build()?,
            user_defined: UserDefined::new(
                of_type(PieceType::UserDefined).map(|(id, piece)| (piece.text.clone(), id)),
            ),
            dummy_prefix,
        })
    }

    /// Appends the ids of a text without special tokens; one that `goes_on` gets no dummy prefix.
    pub fn encode(&self, text: &str, goes_on: bool, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + SPACE.len_utf8());
        if self.dummy_prefix && !goes_on {
            escaped.push(SPACE);
        }
        for (index, word) in text.split(' ').enumerate() {
            if index > 0 {
                escaped.push(SPACE);
            }
            escaped.push_str(word);
        }
        let mut start = 0;
        let mut at = 0;
        while at < escaped.len() {
            let rest = &escaped[at..];
            match self.user_defined.longest_at(rest) {
                Some((length, id)) => {
                    self.merge(&escaped[start..at], ids)?;
                    ids.push(id);
                    at += length;
                    start = at;
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        self.merge(&escaped[start..], ids)
    }

    fn merge(&self, chunk: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        ids.extend(self.bpe.tokenize(chunk)?.into_iter().map(|token| token.id));
        Ok(())
    }
}

/// All cuts of all normal pieces into two normal pieces, best score first.
fn merges(vocab: &Vocab, model: &proto::Model) -> Merges {
    let mut cuts: Vec<(f32, u32, &str, &str)> = Vec::with_capacity(vocab.len() * 2);
    for (id, piece) in (0u32..).zip(&model.pieces) {
        if piece.piece_type() != PieceType::Normal {
            continue;
        }
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                cuts.push((piece.score, id, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    cuts.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// The user-defined pieces, by their first byte, the longest first.
struct UserDefined {
    by_first_byte: Vec<Vec<(String, u32)>>,
}

impl UserDefined {
    fn new(pieces: impl Iterator<Item = (String, u32)>) -> Self {
        let mut by_first_byte = vec![Vec::new(); 256];
        for (text, id) in pieces {
            if let Some(first) = text.bytes().next() {
                by_first_byte[usize::from(first)].push((text, id));
            }
        }
        for pieces in &mut by_first_byte {
            pieces.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
        Self { by_first_byte }
    }

    /// Length in bytes and id of the longest user-defined piece that `rest` begins with.
    fn longest_at(&self, rest: &str) -> Option<(usize, u32)> {
        let first = rest.bytes().next()?;
        let pieces = self.by_first_byte.get(usize::from(first))?;
        pieces.iter().find(|(text, _)| rest.starts_with(text)).map(|(text, id)| (text.len(), *id))
    }
}
