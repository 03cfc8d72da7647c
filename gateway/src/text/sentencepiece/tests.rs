use proptest::prelude::*;
use prost::Message;

use super::proto::{BPE, Model, Normalizer, Piece, Trainer};
use super::*;

fn piece(text: &str, kind: PieceType, score: f32) -> Piece {
    Piece { text: text.to_owned(), score, kind: Some(kind as i32) }
}

/// Ids: 0 unknown, 1..=3 control, 4 `<user>` control, 5 and 6 user-defined, 7..=262 bytes, then normal pieces.
fn small() -> Model {
    let mut pieces = vec![
        piece("<unk>", PieceType::Unknown, 0.0),
        piece("<s>", PieceType::Control, 0.0),
        piece("</s>", PieceType::Control, 0.0),
        piece("<pad>", PieceType::Control, 0.0),
        piece("<user>", PieceType::Control, 0.0),
        piece("_", PieceType::UserDefined, 0.0),
        piece("__", PieceType::UserDefined, 0.0),
    ];
    pieces.extend((0..=255u8).map(|byte| piece(&format!("<0x{byte:02X}>"), PieceType::Byte, 0.0)));
    let normal = ["ab", "▁a", "aba", "▁aba", "▁▁", "▁", "a", "b", "<", ">"];
    pieces.extend((0u8..).zip(normal).map(|(rank, text)| piece(text, PieceType::Normal, -f32::from(rank))));
    let trainer = Trainer {
        model_type: Some(BPE),
        byte_fallback: true,
        unk_id: Some(0),
        bos_id: Some(1),
        eos_id: Some(2),
        pad_id: Some(3),
        ..Trainer::default()
    };
    let normalizer = Normalizer { remove_extra_whitespaces: Some(false), ..Normalizer::default() };
    Model { pieces, trainer: Some(trainer), normalizer: Some(normalizer) }
}

const NORMAL: u32 = 263;

fn load(model: &Model, class: Option<&str>) -> Result<SentencePiece, TextError> {
    let config = TokenizerConfig { class: class.map(str::to_owned), ..TokenizerConfig::default() };
    SentencePiece::load(Path::new("tokenizer.model"), &model.encode_to_vec(), &config)
}

fn id(text: &str) -> u32 {
    let model = small();
    let place = model.pieces.iter().position(|piece| piece.text == text).unwrap();
    u32::try_from(place).unwrap()
}

fn check(text: &str, expected: &[&str]) {
    let expected: Vec<u32> = expected.iter().map(|text| id(text)).collect();
    assert_eq!(load(&small(), None).unwrap().encode(text, false).unwrap(), expected, "{text:?}");
}

#[test]
fn the_best_score_merges_first() {
    check("", &[]);
    check("aba", &["▁aba"]);
    check("abab", &["▁", "ab", "ab"]);
    check("  ab", &["▁▁", "▁", "ab"]);
    assert_eq!(id("ab"), NORMAL);
}

#[test]
fn user_defined_pieces_are_matched_first_and_longest() {
    check("a___b", &["▁a", "__", "_", "b"]);
    check("_", &["▁", "_"]);
}

#[test]
fn unknown_characters_become_bytes() {
    check("é", &["▁", "<0xC3>", "<0xA9>"]);
    check("\0", &["▁", "<0x00>"]);
}

#[test]
fn special_tokens_cut_the_text_and_other_control_pieces_do_not() {
    check("a</s>b", &["▁a", "</s>", "▁", "b"]);
    check("<user>", &["▁", "<", "<0x75>", "<0x73>", "<0x65>", "<0x72>", ">"]);
}

#[test]
fn each_run_loses_one_space() {
    let model = load(&small(), None).unwrap();
    let decode = |pieces: &[&str]| model.decode(&pieces.iter().map(|text| id(text)).collect::<Vec<u32>>());
    assert_eq!(decode(&["▁a", "▁a"]), "a a");
    assert_eq!(decode(&["▁", "▁a", "</s>", "▁▁", "a"]), " a</s> a");
    assert_eq!(decode(&["<user>", "▁a"]), "a");
    assert_eq!(decode(&["<0xC3>", "<0xA9>", "▁a"]), "é a");
    assert_eq!(decode(&["<0xC3>", "<user>", "<0xA9>"]), "\u{fffd}\u{fffd}");
    assert_eq!(model.decode(&[id("a"), 100_000, u32::MAX, id("b")]), "ab");
}

#[test]
fn some_classes_put_a_space_before_an_ended_run() {
    let model = load(&small(), Some("TelechatTokenizer")).unwrap();
    let decode = |pieces: &[&str]| model.decode(&pieces.iter().map(|text| id(text)).collect::<Vec<u32>>());
    assert_eq!(decode(&["▁a", "</s>", "</s>", "▁a", "b", "<s>", "b"]), " a</s></s> ab<s>b");
    assert_eq!(decode(&["</s>"]), "</s>");
}

#[test]
fn the_bytes_of_a_token_are_its_own() {
    let model = load(&small(), None).unwrap();
    assert_eq!(model.token_bytes(id("▁aba")), b" aba");
    assert_eq!(model.token_bytes(id("<0xC3>")), b"\xc3");
    assert_eq!(model.token_bytes(id("</s>")), b"</s>");
    assert_eq!(model.token_bytes(5_000), b"");
}

#[test]
fn what_cannot_be_carried_out_exactly_is_refused() {
    let changed = |change: fn(&mut Model)| {
        let mut model = small();
        change(&mut model);
        load(&model, None).err().unwrap_or_else(|| panic!("accepted"))
    };
    let unsupported: [fn(&mut Model); 6] = [
        |model| model.trainer = None,
        |model| model.normalizer = None,
        |model| model.trainer.as_mut().unwrap().model_type = Some(1),
        |model| model.normalizer.as_mut().unwrap().precompiled_charsmap = vec![1],
        |model| model.normalizer.as_mut().unwrap().escape_whitespaces = Some(false),
        |model| model.pieces.push(piece("c", PieceType::Unused, 0.0)),
    ];
    for change in unsupported {
        let error = changed(change);
        assert!(matches!(error, TextError::Unsupported { .. }), "{error}");
    }
    let corrupt: [fn(&mut Model); 7] = [
        |model| model.pieces.clear(),
        |model| model.pieces[20].kind = Some(77),
        |model| model.pieces[20].text = "<0xZZ>".to_owned(),
        |model| model.pieces[20].text.clear(),
        |model| model.pieces[20].text = model.pieces[21].text.clone(),
        |model| model.pieces[270].score = f32::NAN,
        |model| model.pieces[270].text = "a".repeat(100_000),
    ];
    for change in corrupt {
        let error = changed(change);
        assert!(matches!(error, TextError::Corrupt { .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn texts_survive(text in "[ab_ é\u{1F600}\n<>/sx]{0,40}") {
        let model = load(&small(), None).unwrap();
        let ids = model.encode(&text, false).unwrap();
        prop_assert_eq!(model.decode(&ids), text);
    }

    #[test]
    fn damaged_files_are_errors_or_models(at in 0usize..4000, byte in any::<u8>(), end in 0usize..5000) {
        let mut bytes = small().encode_to_vec();
        if let Some(slot) = bytes.get_mut(at) {
            *slot = byte;
        }
        bytes.truncate(end);
        let config = TokenizerConfig::default();
        if let Ok(model) = SentencePiece::load(Path::new("tokenizer.model"), &bytes, &config) {
            model.decode(&model.encode("aba é_</s>", false).unwrap());
        }
    }
}
