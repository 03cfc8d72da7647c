//! Golden answers to compare with: prompts, the reference's greedy ids, and how sure it was of each.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Below this margin another order of additions may turn an id (`golden/README.md`).
const SURE: f64 = 2e-3;

/// Questions to a model, and the reference's answers.
pub struct Golden {
    /// The checkpoint's folder.
    pub model: PathBuf,
    /// The reference's repetition penalty.
    pub repetition_penalty: f32,
    /// One for each prompt.
    pub answers: Vec<Answer>,
}

/// One prompt and its answer.
pub struct Answer {
    /// As the model sees it.
    pub prompt: Vec<u32>,
    /// What the reference answered, as far as it was sure.
    pub ids: Vec<u32>,
}

impl Golden {
    /// The answers of the demo model where it has been pulled; else, said aloud, those of a tiny checkpoint.
    pub fn demo_or_tiny() -> Self {
        let demo = asterism_model::manifest::demo_folder().filter(|folder| folder.is_dir());
        match demo {
            Some(model) => Self::demo(model),
            None => {
                println!(
                    "SKIPPED: the demo model's answers (run `asterism pull demo`); a tiny checkpoint stands in"
                );
                Self::tiny()
            }
        }
    }

    fn demo(model: PathBuf) -> Self {
        let items = read(&root().join("demo-smollm2/golden.json"));
        let items = items["items"].as_array().expect("a list of chats").iter().take(3);
        let answers = items.map(|item| answer(item, &item["greedy_ids"], 0)).collect();
        Self { model, repetition_penalty: 1.0, answers }
    }

    /// The answers of a checkpoint of 4 layers with the real tokenizer.
    pub fn tiny() -> Self {
        let chat = root().join("chat");
        let name = std::fs::read_to_string(chat.join("checkpoint")).expect("the name of a checkpoint");
        let calls = read(&chat.join("chat_52b.json"));
        let calls =
            calls.as_array().expect("a list of calls").iter().filter(|call| call.get("error").is_none());
        let answers =
            calls.map(|call| answer(call, &call["output_ids"], ids(&call["prompt_ids"]).len())).collect();
        Self { model: root().join(name.trim()), repetition_penalty: 1.02, answers }
    }

    /// The model's folder as an argument.
    pub fn model(&self) -> &str {
        self.model.to_str().expect("a folder with a plain name")
    }
}

/// The folder of the golden data, as `tests/` finds it.
pub fn root() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = workspace.join("../shared/golden");
    match std::env::var_os("ASTERISM_GOLDEN") {
        Some(named) => named.into(),
        None if shared.is_dir() => shared,
        None => workspace.join("tests/golden"),
    }
}

/// The first `skip` ids of `whole` are the prompt's.
fn answer(item: &Value, whole: &Value, skip: usize) -> Answer {
    let margins = item["margins"].as_array().expect("margins");
    let sure =
        margins.iter().take_while(|margin| margin.as_f64().is_some_and(|margin| margin > SURE)).count();
    Answer { prompt: ids(&item["prompt_ids"]), ids: ids(whole).into_iter().skip(skip).take(sure).collect() }
}

fn ids(list: &Value) -> Vec<u32> {
    serde_json::from_value(list.clone()).expect("token ids")
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}
