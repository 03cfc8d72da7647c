use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;

/// A safetensors file of these f32 tensors, each of as many zeros as its shape says.
fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 4 * shape.iter().product::<usize>();
        header
            .insert((*name).into(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let len = header.len() as u64;
    fs::write(path, [&len.to_le_bytes()[..], header.as_bytes(), &vec![0; offset]].concat()).unwrap();
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    folder
}

#[test]
fn nothing_is_no_checkpoint() {
    let folder = folder();
    for path in [folder.path().to_owned(), folder.path().join("absent"), folder.path().join("config.json")] {
        assert!(matches!(Checkpoint::open(path), Err(ModelError::NoCheckpoint { .. })));
    }
}

#[test]
fn a_single_file_comes_before_an_index() {
    let folder = folder();
    write(&folder.path().join("model.safetensors"), &[("a", &[2, 3]), ("b", &[])]);
    fs::write(folder.path().join("model.safetensors.index.json"), "not JSON").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.tensor("a").unwrap().shape, [2, 3]);
    assert_eq!(checkpoint.bytes("b").unwrap().len(), 4);
    assert!(checkpoint.bytes("c").is_none());
}

#[test]
fn an_index_is_held_to_its_word() {
    let folder = folder();
    let index = folder.path().join("model.safetensors.index.json");
    write(&folder.path().join("one.safetensors"), &[("a", &[1]), ("unlisted", &[1])]);
    let open = |map: Value| {
        fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        Checkpoint::open(folder.path())
    };
    assert_eq!(open(json!({ "a": "one.safetensors" })).unwrap().tensors().len(), 1);
    match open(json!({ "a": "one.safetensors", "b": "two.safetensors" })) {
        Err(ModelError::MissingShard { shard, tensor, .. }) => {
            assert_eq!((shard.as_str(), tensor.as_str()), ("two.safetensors", "b"));
        }
        other => panic!("{other:?}"),
    }
    match open(json!({ "a": "one.safetensors", "b": "one.safetensors" })) {
        Err(ModelError::NotInShard { tensor, .. }) => assert_eq!(tensor, "b"),
        other => panic!("{other:?}"),
    }
    for elsewhere in ["../one.safetensors", "/etc/passwd", ".", ""] {
        assert!(matches!(open(json!({ "a": elsewhere })), Err(ModelError::Malformed { .. })), "{elsewhere}");
    }
    fs::write(&index, "{}").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(ModelError::Malformed { .. })));
}

#[test]
fn a_truncated_safetensors_file_is_refused_wherever_it_ends() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("a", &[2, 3]), ("b", &[5])]);
    let whole = fs::read(&path).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err(), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn a_header_cannot_lie_about_places() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    for (shape, offsets) in
        [(json!([3]), [0, 8]), (json!([2]), [0, 16]), (json!([2]), [8, 0]), (json!([u64::MAX, 2]), [0, 8])]
    {
        let header = json!({ "a": { "dtype": "F32", "shape": shape, "data_offsets": offsets } }).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
        fs::write(&path, bytes).unwrap();
        assert!(matches!(Checkpoint::open(folder.path()), Err(ModelError::Malformed { .. })), "{header}");
    }
}

#[test]
fn an_endless_config_is_not_read() {
    let folder = folder();
    let path = folder.path().join("config.json");
    fs::write(&path, "x".repeat(11)).unwrap();
    assert!(matches!(read_text(&path, 10), Err(ModelError::Malformed { .. })));
    assert_eq!(read_text(&path, 11).unwrap().len(), 11);
}
