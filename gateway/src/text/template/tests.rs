use asterism_proto::Reason;

use super::*;

fn chat(messages: &[(&str, &str)]) -> Vec<ChatMessage> {
    messages.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

fn jinja(source: &str) -> ChatTemplate {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#,
    )
    .unwrap();
    ChatTemplate::load(dir.path(), None).unwrap()
}

fn fails(template: &ChatTemplate, messages: &[ChatMessage], words: &str) {
    let failure = template.render(messages).unwrap_err();
    assert_eq!((failure.reason, failure.field.as_deref()), (Reason::InvalidArgument, Some("chat")));
    assert!(failure.message.contains(words), "{}", failure.message);
}

#[test]
fn the_native_template_writes_turns() {
    let render = |messages| ChatTemplate::Native.render(&chat(messages)).unwrap();
    assert_eq!(render(&[]), "");
    assert_eq!(render(&[("user", "")]), "<_user><_bot>");
    assert_eq!(
        render(&[("user", " a\n"), ("assistant", "b</s>"), ("user", "c")]),
        "<_user> a\n<_bot>b</s><_end><_user>c<_bot>"
    );
}

#[test]
fn the_native_template_names_the_role_it_does_not_take() {
    for (messages, index) in [
        (&[("system", "s"), ("user", "q")][..], 0),
        (&[("assistant", "a")], 0),
        (&[("user", "a"), ("user", "b")], 1),
        (&[("user", "a"), ("assistant", "b")], 1),
        (&[("user", "a"), ("assistant", "b"), ("tool", "c")], 2),
    ] {
        let failure = ChatTemplate::Native.render(&chat(messages)).unwrap_err();
        assert_eq!(failure.reason, Reason::InvalidArgument);
        assert_eq!(failure.field, Some(format!("chat.messages[{index}].role")));
    }
}

#[test]
fn a_model_without_a_template_takes_no_chat() {
    let dir = tempfile::tempdir().unwrap();
    let template = ChatTemplate::load(dir.path(), None).unwrap();
    fails(&template, &chat(&[("user", "q")]), "no chat template");
}

#[test]
fn the_native_template_belongs_to_the_52b_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"tokenizer_class": "TELECHATTokenizer"}"#).unwrap();
    assert!(matches!(ChatTemplate::load(dir.path(), None).unwrap(), ChatTemplate::Native));
}

#[test]
fn an_explicit_file_comes_first_and_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "folder").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "config"}"#).unwrap();
    let file = dir.path().join("mine.jinja");
    let rendered = |file| ChatTemplate::load(dir.path(), file).map(|template| template.render(&[]).unwrap());
    assert!(matches!(rendered(Some(&file)), Err(TextError::Read { .. })));
    std::fs::write(&file, "mine").unwrap();
    assert_eq!(rendered(Some(&file)).unwrap(), "mine");
    assert_eq!(rendered(None).unwrap(), "folder");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(rendered(None).unwrap(), "config");
    let named =
        r#"{"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), named).unwrap();
    assert_eq!(rendered(None).unwrap(), "d");
}

#[test]
fn a_broken_template_is_found_at_load() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
    match ChatTemplate::load(dir.path(), None) {
        Err(TextError::Corrupt { path, message }) => {
            assert!(path.ends_with("chat_template.jinja") && message.contains("line 1"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_are_trimmed_as_hugging_face_does() {
    let template =
        jinja("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nend\n");
    assert_eq!(template.render(&chat(&[("a", ""), ("b", "")])).unwrap(), "a\nb\nend");
}

#[test]
fn what_templates_commonly_use_is_there() {
    let template = jinja(
        "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% if loop.index > 2 %}{% break %}\
         {% endif %}{% set ns.n = ns.n + 1 %}{{ m['content'].strip().split('|')[-1] }}{{ m.content | trim | tojson }}\
         {% endfor %}{{ ns.n }}{{ eos_token }}{% if tools is not none %}tools{% endif %}\
         {% if add_generation_prompt %}!{% endif %}{{ unk_token }}",
    );
    let messages = chat(&[("u", "x"), ("u", " a|b\\u003c<'\" "), ("u", "好"), ("u", "y")]);
    assert_eq!(template.render(&messages).unwrap(), "<s>b\\u003c<'\"\"a|b\\\\u003c<'\\\"\"好\"好\"2</s>!");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let template = jinja(r#"{{ {"a": [1, true, none], "b": "<&>"} | tojson }}{{ [1] | tojson(indent=2) }}"#);
    assert_eq!(template.render(&[]).unwrap(), "{\"a\": [1, true, null], \"b\": \"<&>\"}[\n  1\n]");
}

#[test]
fn any_role_reaches_a_jinja_template() {
    let template = jinja("{{ messages[0].role }}");
    assert_eq!(template.render(&chat(&[("whoever", "")])).unwrap(), "whoever");
}

#[test]
fn a_failing_template_is_the_callers_argument() {
    let refusal = jinja("{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}");
    fails(&refusal, &chat(&[("tool", "")]), "users first");
    fails(&jinja("{{ messages[0].content + 1 }}"), &chat(&[("user", "a")]), "line 1");
    fails(&jinja("{{ messages.nothing.here }}"), &chat(&[("user", "a")]), "undefined");
}

#[test]
fn a_hostile_template_fails_instead_of_hanging() {
    let spent = "too many steps or too much memory";
    let messages = chat(&[("user", "q")]);
    let nested = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}x\
                  {% endfor %}{% endfor %}{% endfor %}";
    fails(&jinja(nested), &messages, spent);
    let doubled =
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    fails(&jinja(doubled), &messages, spent);
    fails(&jinja("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), &messages, "recursion");
    assert!(jinja("{{ 'x' * 1000000000000 }}").render(&messages).is_err());
    assert!(jinja("{{ range(100000000000) | list }}").render(&messages).is_err());
}
