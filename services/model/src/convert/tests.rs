use super::*;
use crate::weights::StoredDtype;

fn tensor(name: &str, dtype: StoredDtype, len: usize) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: vec![len] }
}

#[test]
fn files_are_filled_up_to_their_size() {
    let tensors = [10, 20, 100, 5, 5].map(|len| tensor("t", StoredDtype::Bf16, len)).to_vec();
    let lengths = |most| {
        let shards = sharded(tensors.clone(), most);
        shards
            .iter()
            .map(|shard| shard.iter().map(|info| info.shape[0]).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    assert_eq!(lengths(60), [vec![10, 20], vec![100], vec![5, 5]]);
    assert_eq!(lengths(1000), [vec![10, 20, 100, 5, 5]]);
}

#[test]
fn a_header_is_what_the_format_asks_for() {
    let bytes = header(&[tensor("a", StoredDtype::F32, 3), tensor("b", StoredDtype::Bf16, 5)]);
    assert_eq!(bytes.len() % 8, 0);
    let whole = [bytes, vec![0; 22]].concat();
    let file = safetensors::SafeTensors::deserialize(&whole).unwrap();
    assert_eq!(file.tensor("b").unwrap().data().len(), 10);
}

#[test]
fn an_unfinished_folder_disappears_and_a_running_one_is_not_disturbed() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let mut first = PartialFolder::create(&out).unwrap();
    first.write("config.json", b"{}").unwrap();
    assert!(matches!(PartialFolder::create(&out), Err(ModelError::Busy { .. })));
    drop(first);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);

    let mut second = PartialFolder::create(&out).unwrap();
    second.write("config.json", b"{}").unwrap();
    second.finish(&out).unwrap();
    drop(second);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    assert!(matches!(PartialFolder::create(&out), Err(ModelError::Occupied { .. })));
}

#[test]
fn what_an_interrupted_conversion_left_is_cleared() {
    let home = tempfile::tempdir().unwrap();
    let left = home.path().join(".out.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("model.safetensors"), "half of it").unwrap();
    let folder = PartialFolder::create(&home.path().join("out")).unwrap();
    assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 0);
}
