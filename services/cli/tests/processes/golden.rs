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
        let goldens = root().join("demo-smollm2/golden.json");
        let demo = asterism_model::manifest::demo_folder().filter(|folder| folder.is_dir());
        match demo {
            Some(model) if goldens.is_file() => Self::demo(model, &goldens),
            Some(_) => Self::stand_in(&format!("{} is not there", goldens.display())),
            None => Self::stand_in("it has not been pulled (`asterism pull demo`)"),
        }
    }

    fn stand_in(why: &str) -> Self {
        println!("SKIPPED: the demo model's answers: {why}; a tiny checkpoint stands in");
        Self::tiny()
    }

    fn demo(model: PathBuf, goldens: &Path) -> Self {
        let items = read(goldens);
        let items = items["items"].as_array().expect("a list of chats").iter();
        let answers = items.map(answer).collect();
        Self { model, repetition_penalty: 1.0, answers }
    }

    /// The answers of a tiny checkpoint that every copy of the golden data has. It has no tokenizer.
    pub fn tiny() -> Self {
        let model = root().join("tiny-52b");
        let cases = read(&model.join("goldens/prefill.json"));
        let cases =
            cases.as_array().expect("a list of cases").iter().filter(|case| case.get("input_ids").is_some());
        let answers = cases.map(|case| {
            let steps = case["greedy_rp1.02"].as_array().expect("greedy steps");
            let sure =
                steps.iter().take_while(|step| step["margin"].as_f64().is_some_and(|margin| margin > SURE));
            let ids_drawn =
                sure.map(|step| serde_json::from_value(step["token"].clone()).expect("a token id"));
            Answer { prompt: ids(&case["input_ids"]), ids: ids_drawn.collect() }
        });
        let answers = answers.collect();
        Self { model, repetition_penalty: 1.02, answers }
    }

    /// Whether the model speaks text, not only token ids.
    pub fn speaks(&self) -> bool {
        self.model.join("tokenizer.json").is_file()
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

fn answer(item: &Value) -> Answer {
    let margins = item["margins"].as_array().expect("margins");
    let sure =
        margins.iter().take_while(|margin| margin.as_f64().is_some_and(|margin| margin > SURE)).count();
    Answer {
        prompt: ids(&item["prompt_ids"]),
        ids: ids(&item["greedy_ids"]).into_iter().take(sure).collect(),
    }
}

fn ids(list: &Value) -> Vec<u32> {
    serde_json::from_value(list.clone()).expect("token ids")
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}
