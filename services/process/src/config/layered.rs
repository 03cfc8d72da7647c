//! The layers, and the one parser of each key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// The id and flag of the option that names the TOML file.
const FILE: &str = "config";

/// A service's configuration.
pub trait Settings: clap::Args {
    /// What is wrong between keys that are each right by themselves.
    fn check(&self) -> Vec<String> {
        Vec::new()
    }
}

/// All that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "configuration: {only}"),
            all => {
                write!(f, "{} mistakes in the configuration:", all.len())?;
                all.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

/// One key of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// In the TOML file.
    pub name: String,
    /// On the command line, without its dashes.
    pub flag: String,
    /// In the environment.
    pub env: Option<String>,
}

/// The keys that a configuration has, in their order.
pub fn keys<T: Settings>() -> Vec<Key> {
    let command = T::augment_args(Command::new(FILE));
    let keys = command.get_arguments().map(|arg| Key {
        name: arg.get_id().to_string(),
        flag: arg.get_long().unwrap_or_default().to_owned(),
        env: arg.get_env().map(|name| name.to_string_lossy().into_owned()),
    });
    keys.collect()
}

/// The arguments of `T` as given on the command line, not parsed yet, and `--config FILE`. Flatten it into a command, or use
/// it as a subcommand's arguments; then [`load`](Self::load).
#[derive(Clone, Debug)]
pub struct Layered<T> {
    flags: BTreeMap<String, Vec<String>>,
    file: Option<PathBuf>,
    settings: std::marker::PhantomData<fn() -> T>,
}

impl<T: Settings> clap::Args for Layered<T> {
    fn augment_args(command: Command) -> Command {
        let keys: Vec<Arg> = T::augment_args(Command::new(FILE)).get_arguments().cloned().collect();
        let file = Arg::new(FILE).long(FILE).value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        // Values stay text here, so that a wrong one does not hide the others' mistakes.
        let keys = keys.into_iter().map(|arg| match arg.get_action() {
            ArgAction::SetTrue | ArgAction::SetFalse => arg.required(false).env(None::<&str>),
            _ => arg.required(false).hide_env_values(true).value_parser(clap::value_parser!(String)),
        });
        command
            .arg(file.help(
                "TOML file with any of these keys (spelled with _); environment and flags go before it",
            ))
            .args(keys)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Settings> clap::FromArgMatches for Layered<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        for arg in T::augment_args(Command::new(FILE)).get_arguments() {
            let id = arg.get_id().as_str();
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let values = match arg.get_action() {
                ArgAction::SetTrue | ArgAction::SetFalse => vec![matches.get_flag(id).to_string()],
                _ => matches.get_many::<String>(id).into_iter().flatten().cloned().collect(),
            };
            flags.insert(id.to_owned(), values);
        }
        let file = matches.get_one::<PathBuf>(FILE).cloned();
        Ok(Self { flags, file, settings: std::marker::PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Settings> Layered<T> {
    /// The whole configuration, over the process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<T, Mistakes> {
        self.load_over(|name| std::env::var_os(name))
    }

    /// The whole configuration, over an environment given as a function.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_over(&self, env: impl Fn(&str) -> Option<OsString>) -> Result<T, Mistakes> {
        let command = T::augment_args(Command::new(FILE).no_binary_name(true));
        let mut mistakes = Vec::new();
        let mut file = self.file.as_deref().map_or_else(BTreeMap::new, |path| read(path, &mut mistakes));
        let mut given = Vec::new();
        for arg in command.get_arguments() {
            let from_file = file.remove(arg.get_id().as_str());
            match self.given(arg, &env, from_file) {
                Some(given_value) => match given_value.check(arg) {
                    Ok(()) => given.extend(given_value.as_arguments(arg)),
                    Err(mistake) => mistakes.push(mistake),
                },
                None if arg.is_required_set() => mistakes.push(missing(arg)),
                None => {}
            }
        }
        mistakes.extend(file.into_values().map(|value| format!("{}: no such key", value.origin)));
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let command = command.mut_args(|arg| arg.env(None::<&str>));
        let whole = command.try_get_matches_from(given).and_then(|matches| T::from_arg_matches(&matches));
        let settings = whole.map_err(|error| Mistakes(vec![plain(&error)]))?;
        let mistakes = settings.check();
        if mistakes.is_empty() { Ok(settings) } else { Err(Mistakes(mistakes)) }
    }

    /// The value of the highest layer that has one.
    fn given(
        &self,
        arg: &Arg,
        env: impl Fn(&str) -> Option<OsString>,
        from_file: Option<Given>,
    ) -> Option<Given> {
        let flag = self.flags.get(arg.get_id().as_str());
        let flag = flag.map(|values| Given { origin: flag_name(arg), values: values.clone() });
        let from_env = || {
            let name = arg.get_env()?.to_str()?;
            let value = env(name)?;
            Some(Given { origin: name.to_owned(), values: vec![value.to_string_lossy().into_owned()] })
        };
        flag.or_else(from_env).or(from_file)
    }
}

/// A key's value as text, and where it was given.
struct Given {
    origin: String,
    values: Vec<String>,
}

impl Given {
    /// Parses the value as the key's own parser does.
    fn check(&self, arg: &Arg) -> Result<(), String> {
        let wrong = |reason: &str| format!("{}: {reason}", self.origin);
        if is_switch(arg) {
            let switch = self.values.first().map(String::as_str);
            return match switch {
                Some("true" | "false") => Ok(()),
                other => Err(wrong(&format!("{:?} is neither true nor false", other.unwrap_or_default()))),
            };
        }
        let alone = arg.clone().required(false).env(None::<&str>);
        let command = Command::new(FILE).no_binary_name(true).arg(alone);
        command.try_get_matches_from(self.as_arguments(arg)).map(drop).map_err(|error| wrong(&reason(&error)))
    }

    /// The command line that says the same.
    fn as_arguments(&self, arg: &Arg) -> Vec<String> {
        let flag = flag_name(arg);
        if is_switch(arg) {
            return if self.values.iter().any(|value| value == "true") { vec![flag] } else { Vec::new() };
        }
        self.values.iter().map(|value| format!("{flag}={value}")).collect()
    }
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn flag_name(arg: &Arg) -> String {
    format!("--{}", arg.get_long().unwrap_or_else(|| arg.get_id().as_str()))
}

fn missing(arg: &Arg) -> String {
    let env = arg.get_env().map(|name| format!(", {}", name.to_string_lossy())).unwrap_or_default();
    format!("{} is not set: give {}{env}, or the key in the file", arg.get_id(), flag_name(arg))
}

/// Why one key's own parser refused a value.
fn reason(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.as_str(),
        _ => "",
    };
    match (error.get(ContextKind::ValidValue), std::error::Error::source(error)) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("{value:?} is none of {}", valid.join(", "))
        }
        (_, Some(source)) if source.to_string().contains(value) => source.to_string(),
        (_, Some(source)) => format!("{value:?}: {source}"),
        _ => plain(error),
    }
}

/// clap's own message without its heading and usage.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// The keys of a TOML file, each value as the text that its key's parser reads.
fn read(path: &Path, mistakes: &mut Vec<String>) -> BTreeMap<String, Given> {
    let shown = path.display();
    let parsed =
        std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}")).and_then(|text| {
            text.parse::<toml::Table>().map_err(|error| format!("{shown}: {}", error.message()))
        });
    let table = match parsed {
        Ok(table) => table,
        Err(mistake) => {
            mistakes.push(mistake);
            return BTreeMap::new();
        }
    };
    let mut keys = BTreeMap::new();
    for (key, value) in table {
        let origin = format!("{shown}: {key}");
        match values(value) {
            Some(values) => drop(keys.insert(key, Given { origin, values })),
            None => mistakes.push(format!("{origin}: not text, a number, true, false or a list of these")),
        }
    }
    keys
}

fn values(value: toml::Value) -> Option<Vec<String>> {
    use toml::Value;
    let one = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(switch) => Some(switch.to_string()),
        Value::Array(_) | Value::Table(_) | Value::Datetime(_) => None,
    };
    match value {
        Value::Array(list) => list.into_iter().map(one).collect(),
        single => Some(vec![one(single)?]),
    }
}

#[cfg(test)]
mod tests;
