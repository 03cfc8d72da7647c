use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::pickle::PickleError;
use super::*;
use crate::weights::StoredDtype;

/// Writes instructions as torch.save does.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    fn int(self, value: i32) -> Self {
        self.op(b"J").op(&value.to_le_bytes())
    }

    fn ints(self, values: &[i32]) -> Self {
        values.iter().fold(self.op(b"("), |pickle, &value| pickle.int(value)).op(b"t")
    }

    fn start() -> Self {
        Self::default().op(b"\x80\x02}(")
    }

    /// One item: a tensor of an f32 storage.
    fn tensor(
        self,
        name: &str,
        storage: &str,
        [offset, elements]: [i32; 2],
        shape: &[i32],
        strides: &[i32],
    ) -> Self {
        self.text(name)
            .op(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .op(b"ctorch\nFloatStorage\n")
            .text(storage)
            .text("cpu")
            .int(elements)
            .op(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(strides)
            .op(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    fn end(self) -> Vec<u8> {
        self.op(b"u.").0
    }
}

/// A file of torch.save with this pickle and f32 storages "0", "1", ….
fn file(pickle: &[u8], storages: &[&[f32]]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("pytorch_model/{name}"), SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("data.pkl", pickle);
    entry("byteorder", b"little");
    for (index, storage) in storages.iter().enumerate() {
        entry(&format!("data/{index}"), &floats(storage));
    }
    zip.finish().unwrap();
    (folder, path)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

const SIX: &[f32] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

#[test]
fn tensors_are_views_of_their_storages() {
    let pickle = Pickle::start()
        .tensor("whole", "0", [0, 6], &[2, 3], &[3, 1])
        .tensor("part", "0", [2, 6], &[2], &[1])
        .tensor("transposed", "0", [0, 6], &[3, 2], &[1, 3])
        .tensor("scalar", "1", [0, 1], &[], &[])
        .tensor("nothing", "1", [0, 1], &[0, 4], &[4, 1])
        .end();
    let (_folder, path) = file(&pickle, &[SIX, &[-1e4]]);
    let tensors = read(&path).unwrap();
    let get = |name: &str| tensors.iter().find(|tensor| tensor.info.name == name).unwrap();
    assert_eq!(get("whole").info.shape, [2, 3]);
    assert_eq!(get("whole").info.dtype, StoredDtype::F32);
    assert!(matches!(get("whole").place, Place::Mapped { .. }));
    assert_eq!(*get("whole").bytes(), floats(SIX)[..]);
    assert_eq!(*get("part").bytes(), floats(&[2.0, 3.0])[..]);
    assert_eq!(*get("transposed").bytes(), floats(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0])[..]);
    assert_eq!(*get("scalar").bytes(), floats(&[-1e4])[..]);
    assert!(get("nothing").bytes().is_empty());
}

#[test]
fn an_ordered_dict_with_metadata_is_read() {
    let pickle = Pickle::default()
        .op(b"\x80\x02ccollections\nOrderedDict\n)R(")
        .tensor("w", "0", [0, 6], &[6], &[1])
        .op(b"u}")
        .text("_metadata")
        .op(b"}sb.")
        .0;
    let (_folder, path) = file(&pickle, &[SIX]);
    assert_eq!(read(&path).unwrap().len(), 1);
}

#[test]
fn a_hostile_pickle_is_refused_by_name() {
    let calls: [&[u8]; 3] = [
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R.",
    ];
    let names = ["os.system", "builtins.eval", "torch._utils._rebuild_qtensor"];
    for (pickle, name) in calls.into_iter().zip(names) {
        let (_folder, path) = file(pickle, &[SIX]);
        match read(&path) {
            Err(ModelError::ForbiddenGlobal { global, .. }) => assert_eq!(global, name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_view_outside_its_storage_is_refused() {
    let views: [([i32; 2], &[i32], &[i32]); 6] = [
        ([0, 6], &[7], &[1]),
        ([4, 6], &[3], &[1]),
        ([0, 6], &[2, 3], &[4, 1]),
        // Repeats one element: no storage behind its size.
        ([0, 6], &[1 << 20, 1 << 20], &[0, 0]),
        ([0, 6], &[i32::MAX, i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1, 1]),
        ([i32::MAX, 6], &[2], &[i32::MAX]),
    ];
    for (at, shape, strides) in views {
        let (_folder, path) = file(&Pickle::start().tensor("w", "0", at, shape, strides).end(), &[SIX]);
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("tensor `w` lies outside its storage"), "{error}");
    }
    for (at, shape, strides) in [([-1, 6], &[1], &[1]), ([0, 6], &[-1], &[1]), ([0, 6], &[1], &[-1])] {
        let (_folder, path) = file(&Pickle::start().tensor("w", "0", at, shape, strides).end(), &[SIX]);
        assert!(matches!(read(&path), Err(ModelError::Malformed { .. })));
    }
}

#[test]
fn a_missing_storage_is_refused() {
    let (_folder, path) = file(&Pickle::start().tensor("w", "7", [0, 6], &[6], &[1]).end(), &[SIX]);
    assert!(read(&path).unwrap_err().to_string().contains("tensor `w`: storage 7 is missing"));
}

#[test]
fn files_of_other_kinds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    for bytes in [&b""[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\x03\x04 not really"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(read(&path), Err(ModelError::Malformed { .. })));
    }
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    let (_folder, path) = file(&Pickle::start().tensor("w", "0", [0, 6], &[6], &[1]).end(), &[SIX]);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(read(&path).is_err(), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn nesting_does_not_recurse() {
    let deep = [b"\x80\x02)".to_vec(), vec![0x85; 1 << 20], b".".to_vec()].concat();
    assert_eq!(pickle::read(&deep), Err(PickleError::NotTensors));
    let marks = [vec![b'('; 1 << 20], vec![b't'; 1 << 20], b".".to_vec()].concat();
    assert_eq!(pickle::read(&marks), Err(PickleError::NotTensors));
}

#[test]
fn instructions_cannot_reach_below_a_mark_or_an_empty_stack() {
    for pickle in
        [&b"."[..], b"t.", b"u.", b"s.", b"R.", b"Q.", b"K\x01(\x85.", b"h\x00.", b"a.", b"b.", b"K\x01b."]
    {
        assert!(matches!(pickle::read(pickle), Err(PickleError::Operands { .. })), "{pickle:?}");
    }
}

proptest! {
    #[test]
    fn no_damage_to_a_pickle_makes_it_panic(at in 0usize..200, byte: u8, cut in 0usize..400) {
        let mut pickle = Pickle::start()
            .tensor("whole", "0", [0, 6], &[2, 3], &[3, 1])
            .tensor("part", "0", [2, 6], &[2], &[1])
            .end();
        let at = at % pickle.len();
        pickle[at] = byte;
        pickle.truncate(cut.max(1));
        drop(pickle::read(&pickle));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(pickle::read(&bytes));
    }
}
