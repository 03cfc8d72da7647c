use std::io::Write as _;
use std::net::SocketAddr;

use clap::Parser as _;

use super::*;
use crate::config::Bytes;

#[derive(Debug, PartialEq, clap::Args)]
struct Pond {
    #[arg(long, env = "POND_LISTEN", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    #[arg(long, env = "POND_MODEL")]
    model: PathBuf,
    #[arg(long, env = "POND_MAX_ROWS", default_value_t = 512)]
    max_rows: u32,
    #[arg(long, env = "POND_MEMORY")]
    memory: Option<Bytes>,
    #[arg(long, env = "POND_FISH", value_delimiter = ',')]
    fish: Vec<String>,
    #[arg(long, env = "POND_COVERED")]
    covered: bool,
    #[arg(long, env = "POND_COLOUR", default_value = "green")]
    colour: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Colour {
    Green,
    Blue,
}

impl Settings for Pond {
    fn check(&self) -> Vec<String> {
        let dry = self.max_rows == 0;
        if dry { vec!["max_rows is 0".to_owned(), "a pond needs rows".to_owned()] } else { Vec::new() }
    }
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    pond: Layered<Pond>,
}

/// Loads from a TOML text, `NAME=value` pairs and flags.
fn load(toml: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Pond, Mistakes> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(toml.as_bytes()).expect("written");
    let path = file.path().to_str().expect("UTF-8").to_owned();
    let arguments = ["pond", "--config", &path].into_iter().chain(flags.iter().copied());
    let cli = Cli::try_parse_from(arguments).expect("flags that exist");
    cli.pond.load_over(|name| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
}

#[test]
fn later_layers_go_before_earlier_ones() {
    let toml = "model = \"m\"\nmax_rows = 1\nmemory = \"1GiB\"\nfish = [\"carp\", \"koi\"]\ncovered = true";
    let pond = load(toml, &[("POND_MAX_ROWS", "2"), ("POND_MEMORY", "2GiB")], &["--max-rows", "3"]);
    let pond = pond.expect("nothing is wrong");
    assert_eq!(pond.listen.port(), 7070, "the default");
    assert_eq!((pond.model.to_str(), pond.covered), (Some("m"), true), "the file");
    assert_eq!(pond.fish, ["carp", "koi"], "the file's list");
    assert_eq!(pond.memory, Some(Bytes(2 << 30)), "the environment before the file");
    assert_eq!(pond.max_rows, 3, "the flag before the environment");
    assert_eq!(pond.colour, Colour::Green);
}

#[test]
fn lists_split_and_switches_switch_from_the_environment() {
    let pond =
        load("covered = true", &[("POND_FISH", "a,b"), ("POND_COVERED", "false"), ("POND_MODEL", "m")], &[]);
    let pond = pond.expect("nothing is wrong");
    assert_eq!((pond.fish, pond.covered), (vec!["a".to_owned(), "b".to_owned()], false));
}

#[test]
fn every_mistake_of_every_layer_is_told_at_once() {
    let toml = "max_rows = \"many\"\ndepth = 3\nfish = { a = 1 }\ncovered = \"half\"";
    let env = [("POND_MEMORY", "4 giraffes"), ("POND_COLOUR", "red")];
    let mistakes = load(toml, &env, &["--listen", "here"]).expect_err("seven mistakes").0;
    for needle in [
        "max_rows: \"many\"",
        "depth: no such key",
        "fish: not text",
        "covered: \"half\" is neither",
        "POND_MEMORY: \"4 giraffes\" is no size",
        "POND_COLOUR: \"red\" is none of green, blue",
        "--listen: \"here\"",
        "model is not set: give --model, POND_MODEL",
    ] {
        assert!(
            mistakes.iter().any(|mistake| mistake.contains(needle)),
            "{needle:?} is missing in {mistakes:#?}"
        );
    }
    assert_eq!(mistakes.len(), 8, "{mistakes:#?}");
}

#[test]
fn checks_between_keys_come_last() {
    let mistakes = load("model = \"m\"\nmax_rows = 0", &[], &[]).expect_err("two mistakes");
    assert_eq!(mistakes.0, ["max_rows is 0", "a pond needs rows"]);
    assert_eq!(mistakes.to_string().lines().count(), 3);
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let cli = Cli::try_parse_from(["pond", "--config", "/nowhere/pond.toml"]).expect("parses");
    let mistakes = cli.pond.load_over(|_| None).expect_err("no such file").to_string();
    assert!(mistakes.contains("/nowhere/pond.toml"), "{mistakes}");
    let mistakes = load("max_rows = = 1", &[("POND_MODEL", "m")], &[]).expect_err("no TOML").to_string();
    assert!(mistakes.contains(": "), "{mistakes}");
}

#[test]
fn keys_are_listed() {
    let keys = keys::<Pond>();
    let max_rows =
        Key { name: "max_rows".into(), flag: "max-rows".into(), env: Some("POND_MAX_ROWS".into()) };
    assert_eq!(keys.len(), 7);
    assert!(keys.contains(&max_rows), "{keys:?}");
}
