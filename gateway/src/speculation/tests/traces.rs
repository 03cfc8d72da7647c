//! Sequences in words: what is fed, proposed and drawn in each step.
//!
//! A line is a step: the position of its first row, the token that was due, the ids proposed behind it, and the tokens drawn
//! from the rows' evidence as far as it is wanted.

use super::*;

/// A prompt, the answer that the model will draw whatever is proposed, and the price of a row.
struct Script {
    prompt: &'static str,
    answer: &'static str,
    price: f64,
}

/// Words by id, in order of appearance.
#[derive(Default)]
struct Words(Vec<&'static str>);

impl Words {
    fn ids(&mut self, text: &'static str) -> Vec<u32> {
        let id = |word| {
            let known = self.0.iter().position(|&known| known == word);
            known.unwrap_or_else(|| {
                self.0.push(word);
                self.0.len() - 1
            }) as u32
        };
        text.split_whitespace().map(id).collect()
    }

    fn text(&self, ids: &[u32]) -> String {
        ids.iter().map(|&id| self.0[id as usize]).collect::<Vec<_>>().join(" ")
    }
}

impl Script {
    /// Drives the sequence from its first drawn token, which the prompt's evidence gave, to its last.
    fn trace(&self) -> Vec<String> {
        let mut words = Words::default();
        let (prompt, text) = (words.ids(self.prompt), words.ids(self.answer));
        let mut speculator = Speculator::default();
        let (mut drawn, mut lines) = (1, Vec::new());
        while drawn < text.len() {
            let history = History::new(&prompt, &text[..drawn]);
            let most = (text.len() - drawn - 1) as u32;
            let proposal = speculator.propose(history, offer(self.price, most));
            let first = history.len() - 1;
            let mut line = format!("{first}  {}", words.text(&text[drawn - 1..drawn]));
            if !proposal.ids.is_empty() {
                line += &format!("  [{}]", words.text(&proposal.ids));
            }
            let mut verification = Verification::new(first, proposal);
            let before = drawn;
            while !verification.is_over() {
                verification.drawn(text[drawn]);
                drawn += 1;
            }
            lines.push(format!("{line}  -> {}", words.text(&text[before..drawn])));
            speculator.verified(verification.outcome());
        }
        lines
    }
}

#[track_caller]
fn check(script: Script, expected: &[&str]) {
    let found = script.trace();
    assert!(found == expected, "{found:#?}");
}

#[test]
fn an_answer_that_quotes_its_prompt() {
    let script = Script {
        prompt: "the owl and the cat went to sea in a pea green boat . quote :",
        answer: "the owl and the cat went to sea in a pea green boat . done",
        price: 0.05,
    };
    check(
        script,
        &[
            "16  the  -> owl",
            "17  owl  -> and",
            "18  and  [the cat went to sea in a]  -> the cat went to sea in a pea",
            "26  pea  [green boat .]  -> green boat . done",
        ],
    );
}

#[test]
fn an_answer_that_repeats_itself() {
    let script = Script {
        prompt: "sing :",
        answer: "la la la la la la la la la la la la la la la la la la la la oh",
        price: 0.05,
    };
    check(
        script,
        &[
            "2  la  -> la",
            "3  la  -> la",
            "4  la  -> la",
            // Four of them are a gram that was there before; the text is taken to go on so.
            "5  la  [la la la la la la la]  -> la la la la la la la la",
            "13  la  [la la la la la la la la]  -> la la la la la la la la oh",
        ],
    );
}

#[test]
fn a_text_that_goes_on_differently_each_time() {
    let script = Script {
        prompt: "it is a cat",
        answer: "and it is a dog and it is a cow and it is a fox and it is a hen and it is a bee and it is a ram",
        price: 0.1,
    };
    check(
        script,
        &[
            "4  and  -> it",
            "5  it  -> is",
            "6  is  -> a",
            // Hope spends the whole allowance of half a step, in vain …
            "7  a  [cat and it is a]  -> dog",
            "8  dog  -> and",
            "9  and  -> it",
            "10  it  -> is",
            // … so here, where "and it is" has been before, nothing is left.
            "11  is  -> a",
            "12  a  -> cow",
            "13  cow  -> and",
            "14  and  -> it",
            "15  it  -> is",
            // Ten tokens have earned a row; what holds pays for more the next time.
            "16  is  [a]  -> a fox",
            "18  fox  -> and",
            "19  and  -> it",
            "20  it  -> is",
            "21  is  [a fox and it]  -> a hen",
            "23  hen  -> and",
            "24  and  -> it",
            "25  it  -> is",
            "26  is  [a hen and]  -> a bee",
            "28  bee  -> and",
            "29  and  -> it",
            "30  it  -> is",
            "31  is  [a]  -> a ram",
        ],
    );
}

#[test]
fn a_text_without_repetition_proposes_nothing() {
    let script = Script { prompt: "count :", answer: "one two three four", price: 0.05 };
    check(script, &["2  one  -> two", "3  two  -> three", "4  three  -> four"]);
}

#[test]
fn where_a_row_costs_as_much_as_a_token_nothing_is_proposed() {
    let script = Script { prompt: "sing :", answer: "la la la la la la oh", price: 1.0 };
    check(
        script,
        &["2  la  -> la", "3  la  -> la", "4  la  -> la", "5  la  -> la", "6  la  -> la", "7  la  -> oh"],
    );
}
