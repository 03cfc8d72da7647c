use std::path::Path;

use super::*;
use crate::stage::unwatched;

fn entry(fill: u8) -> Entry {
    Entry { dtype: "F32".into(), shape: vec![2, 3], blake3: hex(&[fill; 32]) }
}

fn id(config: &str, entries: &[(&str, Entry)]) -> String {
    Manifest::new(config, entries.iter().map(|(name, entry)| ((*name).to_owned(), entry.clone())).collect())
        .checkpoint_id
}

/// A folder with one tensor, and its checkpoint.
fn checkpoint(folder: &Path, weight: f32) -> Checkpoint {
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &weight.to_le_bytes()].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    Checkpoint::open(folder).unwrap()
}

#[test]
fn the_id_depends_on_everything() {
    let base = id("{}", &[("a", entry(1)), ("b", entry(2))]);
    assert_eq!(base, id("{}", &[("b", entry(2)), ("a", entry(1))]));
    assert_eq!(base.len(), 64);
    for other in [
        id("{ }", &[("a", entry(1)), ("b", entry(2))]),
        id("{}", &[("a", entry(1))]),
        id("{}", &[("a", entry(1)), ("c", entry(2))]),
        id("{}", &[("a", entry(1)), ("b", entry(3))]),
        id("{}", &[("a", Entry { dtype: "BF16".into(), ..entry(1) }), ("b", entry(2))]),
        id("{}", &[("a", Entry { shape: vec![3, 2], ..entry(1) }), ("b", entry(2))]),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn a_manifest_knows_its_tensors_content() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = Manifest::make(&checkpoint(folder.path(), 1.5), &unwatched).unwrap();
    assert!(manifest.verify("a", &1.5f32.to_le_bytes()).is_ok());
    match manifest.verify("a", &2.5f32.to_le_bytes()) {
        Err(ModelError::WrongContent { name, expected, found }) => {
            assert_eq!(name, "a");
            assert_ne!(expected, found);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_beside_the_weights_is_believed_only_if_it_fits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let checkpoint = checkpoint(folder.path(), 1.5);
    let manifest = Manifest::make(&checkpoint, &unwatched).unwrap();
    manifest.write(&path).unwrap();
    assert_eq!(Manifest::of(&checkpoint, &|_, _| panic!("nothing to read")).unwrap(), manifest);

    let refused = |manifest: &Manifest| {
        manifest.write(&path).unwrap();
        assert!(matches!(Manifest::of(&checkpoint, &unwatched), Err(ModelError::Manifest { .. })));
    };
    refused(&Manifest { checkpoint_id: hex(&[0; 32]), ..manifest.clone() });
    refused(&Manifest::new("{}", BTreeMap::new()));
    refused(&Manifest::new("{}", [("a".to_owned(), entry(0))].into()));
    refused(&Manifest::new("other", manifest.tensors.clone()));
    let more =
        [manifest.tensors.clone().into_iter().collect::<Vec<_>>(), vec![("b".to_owned(), entry(0))]].concat();
    refused(&Manifest::new("{}", more.into_iter().collect()));
    fs::write(&path, "{").unwrap();
    assert!(matches!(Manifest::of(&checkpoint, &unwatched), Err(ModelError::Manifest { .. })));
}

#[test]
fn a_manifest_of_earlier_hashes_says_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let checkpoint = checkpoint(folder.path(), 1.5);
    Manifest::make(&checkpoint, &unwatched).unwrap().write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap().replace("\"blake3\":", "\"sha256\":");
    fs::write(&path, text).unwrap();
    let error = Manifest::of(&checkpoint, &unwatched).unwrap_err();
    assert!(matches!(error, ModelError::Manifest { .. }));
    assert!(error.to_string().contains("its hashes are SHA-256, and BLAKE3 is read"), "{error}");
}

#[test]
fn the_cache_knows_files_by_path_size_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = checkpoint(folder.path(), 1.5);
    let name = cache_file(&first).unwrap();
    assert_eq!(cache_file(&first).unwrap(), name);
    let file = fs::File::options().append(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_ne!(cache_file(&first).unwrap(), name);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_ne!(cache_file(&checkpoint(elsewhere.path(), 1.5)).unwrap(), name);
}
