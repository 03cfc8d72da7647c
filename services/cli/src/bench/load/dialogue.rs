//! What is asked: prompts of the wanted lengths, turn after turn.

use std::num::NonZeroU32;
use std::time::Duration;

use super::length::Length;
use super::random::Random;
use super::target::{Answer, Message, Prompt, Request};

/// How a prompt is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Token ids: exactly as long as wanted.
    Ids,
    /// Plain text, without a template.
    Text,
    /// Messages, for the server's chat template.
    Chat,
    /// A session for each conversation, of which the gateway keeps what was said: each turn is told once.
    Session,
}

impl Form {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ids => "token ids",
            Self::Text => "text",
            Self::Chat => "chat",
            Self::Session => "sessions",
        }
    }
}

/// The conversations of a load. A seed makes them; no two begin alike but for the system prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Decides all lengths and words.
    pub seed: u64,
    /// Tokens at the head of every conversation, the same in all.
    pub system: u32,
    /// Requests of a conversation, each with all that was said before.
    pub turns: NonZeroU32,
    /// New tokens of each turn, the template's excepted.
    pub prompt: Length,
    /// The most tokens of each answer.
    pub answer: Length,
    /// From an answer's end to the next turn.
    pub think: Duration,
}

/// What prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Material {
    /// Ids below `vocab`.
    Ids {
        /// How many there are.
        vocab: u32,
    },
    /// English words, as text.
    Text(Words),
    /// English words, as messages.
    Chat(Words),
    /// English words, as messages of a session.
    Session(Words),
}

/// How many words make a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Words {
    /// Tokens of a word, by the server's own count.
    pub tokens_per_word: f64,
}

/// One conversation.
#[derive(Debug)]
pub struct Dialogue<'a> {
    workload: &'a Workload,
    material: Material,
    index: u64,
    turn: u32,
    said: Prompt,
    /// Tokens of what was said that a request has had.
    repeated: u32,
}

/// What draws are for.
const SYSTEM: u64 = 1;
const USER: u64 = 2;
const LENGTHS: u64 = 3;

impl<'a> Dialogue<'a> {
    /// Conversation `index` before its first turn.
    pub fn new(workload: &'a Workload, material: Material, index: u64) -> Self {
        let mut random = Random::of(workload.seed, &[SYSTEM]);
        let said = match material {
            Material::Ids { vocab } => Prompt::Ids(ids(&mut random, vocab, workload.system)),
            Material::Text(words) => Prompt::Text(words.write(&mut random, workload.system)),
            Material::Chat(words) => Prompt::Chat(system(&mut random, words, workload.system)),
            Material::Session(words) => {
                Prompt::Session { id: None, messages: system(&mut random, words, workload.system) }
            }
        };
        // The first conversation of all is the first to begin so.
        let repeated = if index > 0 { workload.system } else { 0 };
        Self { workload, material, index, turn: 0, said, repeated }
    }

    /// The next turn's request, or none after the last turn.
    pub fn ask(&mut self) -> Option<Request> {
        if self.turn == self.workload.turns.get() {
            return None;
        }
        let path = |purpose| [purpose, self.index, u64::from(self.turn)];
        let mut lengths = Random::of(self.workload.seed, &path(LENGTHS));
        let length = self.workload.prompt.draw(&mut lengths);
        let max_tokens = self.workload.answer.draw(&mut lengths);
        let mut random = Random::of(self.workload.seed, &path(USER));
        match (&mut self.said, self.material) {
            (Prompt::Ids(said), Material::Ids { vocab }) => said.extend(ids(&mut random, vocab, length)),
            (Prompt::Text(said), Material::Text(words)) => {
                let separator = if said.is_empty() { "" } else { "\n\n" };
                said.push_str(separator);
                said.push_str(&words.write(&mut random, length));
                said.push('\n');
            }
            (Prompt::Chat(said), Material::Chat(words)) => {
                said.push(Message { role: "user", content: words.write(&mut random, length) });
            }
            (Prompt::Session { messages, .. }, Material::Session(words)) => {
                messages.push(Message { role: "user", content: words.write(&mut random, length) });
            }
            // `said` is made of the same material.
            _ => return None,
        }
        self.turn += 1;
        let (prompt, turn, repeated) = (self.said.clone(), self.turn, self.repeated);
        Some(Request { prompt, max_tokens, turn, wanted: length, repeated })
    }

    /// Takes in what was answered.
    pub fn hear(&mut self, answer: &Answer) {
        self.repeated = answer.usage.map_or(0, |usage| usage.prompt_tokens.saturating_add(answer.tokens()));
        match &mut self.said {
            Prompt::Ids(said) => said.extend(&answer.ids),
            Prompt::Text(said) => said.push_str(&answer.text),
            Prompt::Chat(said) => said.push(Message { role: "assistant", content: answer.text.clone() }),
            Prompt::Session { id, messages } => {
                id.clone_from(&answer.session);
                messages.clear();
            }
        }
    }

    /// The session that it is held in, once there is one.
    pub fn session(&self) -> Option<&str> {
        match &self.said {
            Prompt::Session { id, .. } => id.as_deref(),
            _ => None,
        }
    }
}

fn system(random: &mut Random, words: Words, length: u32) -> Vec<Message> {
    let content = words.write(random, length);
    if content.is_empty() { Vec::new() } else { vec![Message { role: "system", content }] }
}

fn ids(random: &mut Random, vocab: u32, length: u32) -> Vec<u32> {
    (0..length).map(|_| u32::try_from(random.below(u64::from(vocab))).unwrap_or(0)).collect()
}

impl Words {
    /// About `tokens` tokens of text, at least one word; none for no tokens.
    pub fn write(self, random: &mut Random, tokens: u32) -> String {
        if tokens == 0 {
            return String::new();
        }
        let words = (f64::from(tokens) / self.tokens_per_word).round().max(1.0) as usize;
        let vocabulary: Vec<&str> = VOCABULARY.split(' ').collect();
        let mut text = String::with_capacity(words * 6);
        for index in 0..words {
            if index > 0 {
                text.push(' ');
            }
            let word = random.below(vocabulary.len() as u64) as usize;
            text.push_str(vocabulary.get(word).copied().unwrap_or_default());
        }
        text
    }
}

/// Common words, one token each in most vocabularies.
const VOCABULARY: &str = "\
    time year people way day man thing woman life child world school state family student group country \
    problem hand part place case week company system program question work government number night point \
    home water room mother area money story fact month lot right study book eye job word business issue side \
    kind head house service friend father power hour game line end member law car city community name \
    president team minute idea kid body information back parent face others level office door health person \
    art war history party result change morning reason research girl guy moment air teacher force education \
    foot boy age policy music market sense nation plan college interest death experience effect use class \
    control field development role effort rate heart drug show leader light voice";

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(turns: u32) -> Workload {
        Workload {
            seed: 4,
            system: 100,
            turns: NonZeroU32::new(turns).unwrap(),
            prompt: "uniform:20,40".parse().unwrap(),
            answer: "8".parse().unwrap(),
            think: Duration::ZERO,
        }
    }

    const IDS: Material = Material::Ids { vocab: 512 };
    const CHAT: Material = Material::Chat(Words { tokens_per_word: 1.0 });

    fn answer() -> Answer {
        Answer { ids: vec![1000, 1001], text: "two words".to_owned(), ..Answer::default() }
    }

    #[test]
    fn conversations_share_the_system_prompt_and_nothing_else() {
        let workload = workload(1);
        let ask = |index| match Dialogue::new(&workload, IDS, index).ask().map(|request| request.prompt) {
            Some(Prompt::Ids(ids)) => ids,
            other => panic!("{other:?}"),
        };
        let (first, second) = (ask(0), ask(1));
        assert_eq!(first[..100], second[..100]);
        assert_ne!(first[100..110], second[100..110]);
        assert_eq!(first, ask(0), "a seed makes them");
        assert!((120..=140).contains(&first.len()) && first.iter().all(|&id| id < 512));
    }

    #[test]
    fn a_turn_begins_with_all_that_was_said() {
        let workload = workload(3);
        let mut dialogue = Dialogue::new(&workload, IDS, 7);
        let mut before = Vec::new();
        for turn in 1..=3 {
            let request = dialogue.ask().expect("a turn");
            let Prompt::Ids(ids) = request.prompt else { panic!("ids") };
            assert!(ids.starts_with(&before) && ids.len() > before.len(), "turn {turn}");
            assert_eq!((request.turn, request.max_tokens), (turn, 8));
            dialogue.hear(&answer());
            before = [ids, vec![1000, 1001]].concat();
        }
        assert!(dialogue.ask().is_none());
    }

    #[test]
    fn a_chat_has_its_roles_in_turn() {
        let workload = workload(2);
        let mut dialogue = Dialogue::new(&workload, CHAT, 0);
        dialogue.ask();
        dialogue.hear(&answer());
        let Some(Request { prompt: Prompt::Chat(messages), .. }) = dialogue.ask() else { panic!("messages") };
        let roles: Vec<&str> = messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!(messages[0].content.split(' ').count(), 100);
        assert_eq!(messages[2].content, "two words");
    }

    #[test]
    fn a_session_is_told_what_is_new() {
        let workload = workload(2);
        let material = Material::Session(Words { tokens_per_word: 1.0 });
        let mut dialogue = Dialogue::new(&workload, material, 0);
        let asked = |dialogue: &mut Dialogue<'_>| match dialogue.ask().map(|request| request.prompt) {
            Some(Prompt::Session { id, messages }) => {
                (id, messages.iter().map(|message| message.role).collect::<Vec<_>>())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(&mut dialogue), (None, vec!["system", "user"]));
        dialogue.hear(&Answer { session: Some("s".to_owned()), ..answer() });
        assert_eq!(asked(&mut dialogue), (Some("s".to_owned()), vec!["user"]));
        assert_eq!(dialogue.session(), Some("s"));
    }

    #[test]
    fn words_are_words() {
        assert_eq!(
            VOCABULARY.split(' ').filter(|word| word.chars().all(|c| c.is_ascii_lowercase())).count(),
            128
        );
        assert!(!VOCABULARY.contains("  "));
    }

    #[test]
    fn words_are_counted_in_the_servers_tokens() {
        let words = Words { tokens_per_word: 2.5 };
        let count = |tokens| words.write(&mut Random::of(0, &[]), tokens).split_whitespace().count();
        assert_eq!([count(100), count(1), count(0)], [40, 1, 0]);
    }
}
