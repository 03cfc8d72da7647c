use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use asterism_tensor::{Compute, CudaOptions, Device, Embedding, TensorError};

use super::*;
use crate::content;
use crate::stage::unwatched;

/// One tensor of three parts, the last one not whole.
const ELEMENTS: usize = (2 * PART + 1000) / 4;

fn source() -> Source {
    Source::new("wide", &[ELEMENTS])
}

fn file(folder: &Path) -> std::path::PathBuf {
    folder.join("model.safetensors")
}

fn checkpoint(folder: &Path) -> Checkpoint {
    let header =
        format!(r#"{{"wide":{{"dtype":"F32","shape":[{ELEMENTS}],"data_offsets":[0,{}]}}}}"#, 4 * ELEMENTS);
    let elements = (0..ELEMENTS as u32).flat_map(u32::to_le_bytes);
    let bytes: Vec<u8> =
        (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()).chain(elements).collect();
    fs::write(file(folder), bytes).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    Checkpoint::open(folder).unwrap()
}

fn manifest(checkpoint: &Checkpoint) -> Manifest {
    Manifest::make(checkpoint, &unwatched).unwrap()
}

/// As the threads that send see it: parts in any order, checked after others have been read, errors in a box.
fn send(kept: Kept<'_>) -> Result<Vec<u8>, ModelError> {
    let (_, elements) = kept.elements(&source())?;
    let mut bytes = vec![0; elements.bytes()];
    for (index, part) in bytes.chunks_mut(PART).enumerate().rev() {
        elements.read(index * PART, part).map_err(|source| TensorError::Elements { source })?;
    }
    assert!(elements.is_checked());
    for (index, part) in bytes.chunks(PART).enumerate() {
        let subtrees = content::tests::subtrees(index * PART, part);
        let part = SentPart { bytes: part, subtrees: &subtrees };
        elements.check(index * PART, part).map_err(|source| TensorError::Elements { source })?;
    }
    Ok(bytes)
}

#[test]
fn a_tensor_is_read_in_parts_and_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let manifest = manifest(&checkpoint);
    let done = AtomicU64::new(0);
    let total = 4 * ELEMENTS as u64;
    let advance = |bytes| advance(&unwatched, &done, bytes, total);
    let kept = Kept { checkpoint: &checkpoint, manifest: &manifest, advance: &advance };
    let whole = checkpoint.bytes("wide").unwrap();
    assert!(send(kept).unwrap() == *whole);
    assert!(kept.read(&source()).unwrap() == (Dtype::F32, whole.into_owned()));
    assert_eq!(done.into_inner(), 2 * total);
}

#[test]
fn another_content_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let mut manifest = manifest(&checkpoint);
    manifest.tensors.get_mut("wide").unwrap().blake3 = "0".repeat(64);
    let kept = Kept { checkpoint: &checkpoint, manifest: &manifest, advance: &|_| Ok(()) };
    for error in [send(kept).unwrap_err(), kept.read(&source()).unwrap_err()] {
        match error {
            ModelError::WrongContent { name, .. } => assert_eq!(name, "wide"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_cut_short_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let manifest = manifest(&checkpoint);
    let path = file(folder.path());
    File::options().write(true).open(&path).unwrap().set_len(PART as u64).unwrap();
    let kept = Kept { checkpoint: &checkpoint, manifest: &manifest, advance: &|_| Ok(()) };
    for error in [send(kept).unwrap_err(), Manifest::make(&checkpoint, &unwatched).unwrap_err()] {
        match error {
            ModelError::Unreadable { name, path: found, .. } => {
                assert_eq!((&*name, found), ("wide", path.clone()))
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn whoever_watches_may_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let manifest = manifest(&checkpoint);
    let kept =
        Kept { checkpoint: &checkpoint, manifest: &manifest, advance: &|_| Err(ModelError::LoadStopped) };
    assert!(matches!(send(kept), Err(ModelError::LoadStopped)));
}

/// The first card, where tests are told to run on one.
fn card() -> Option<Device> {
    let is_wanted = std::env::var("ASTERISM_TEST_CUDA").is_ok_and(|wish| wish == "1");
    let options = CudaOptions { ordinal: 0, deterministic: true, cache: None };
    is_wanted.then(|| Device::cuda(options).unwrap())
}

#[test]
fn a_byte_changed_in_the_file_is_found_by_a_card() {
    let Some(device) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let manifest = manifest(&checkpoint);
    let load = || -> Result<Embedding, ModelError> {
        let kept = Kept { checkpoint: &checkpoint, manifest: &manifest, advance: &|_| Ok(()) };
        device.send_weights(|sender| {
            let (dtype, elements) = kept.elements(&source())?;
            Ok(sender.embedding(dtype, [ELEMENTS, 1], elements, Compute::Bf16)?)
        })
    };
    load().unwrap();
    let file = File::options().read(true).write(true).open(file(folder.path())).unwrap();
    let end = file.metadata().unwrap().len();
    // In the last part, in what the host hashes; in the first, in what the card does.
    for at in [end - 7, 5000] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        match load().map(|_| ()) {
            Err(ModelError::WrongContent { name, .. }) => assert_eq!(name, "wide"),
            other => panic!("byte {at}: {other:?}"),
        }
        file.write_all_at(&byte, at).unwrap();
    }
    load().unwrap();
}
