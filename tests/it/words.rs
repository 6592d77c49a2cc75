//! The words of the house: one term for each thing, the field's own, so that others do not come back.

use std::path::Path;

use crate::tidy::files;

/// What is not said, and what is said instead.
const INSTEAD: [(&str, &str); 40] = [
    ("in force", "effective"),
    ("of no use", "expired"),
    ("at hand", "cached"),
    ("on its way", "in flight"),
    ("on their way", "in flight"),
    ("beside", "next to, concurrently"),
    ("forgetter", "garbage collector"),
    ("Forgetter", "GarbageCollector"),
    ("opener", "recovery"),
    ("Opener", "Recovery"),
    ("news", "threshold events"),
    ("AllNews", "ThresholdEvents"),
    ("standing", "usage summary"),
    ("Standing", "UsageSummary"),
    ("Reign", "LimitSpan"),
    ("former life", "stale incarnation"),
    ("begin anew", "start a new incarnation"),
    ("begin_anew", "start_incarnation"),
    ("made do", "used although stale"),
    ("vouches", "trusts_existence"),
    ("see to", "process"),
    ("sees to", "processes"),
    ("seen to", "processed"),
    ("wish", "request"),
    ("wishes", "requests"),
    ("Wish", "a name that ends in Request"),
    ("Groups", "Coalescer"),
    ("Course", "RetryState"),
    ("Unclear", "Miss"),
    ("ClearedUp", "Recovered"),
    ("Moment", "Window"),
    ("Resolved", "CachedPolicy"),
    ("Floors", "MinVersions"),
    ("BESIDE", "THROTTLED"),
    ("AT_ONCE", "FULL_SPEED"),
    ("Metering", "Usage"),
    ("give_up", "mark_broken"),
    ("whoever", "the client, the caller"),
    ("somebody", "a client, an administrator"),
    ("whom", "a noun"),
];

/// Where a word stands in a text as a word of its own.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |it: char| it.is_alphanumeric() || it == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let (before, after) = (&text[..*at], &text[at + word.len()..]);
            !before.ends_with(part) && !after.starts_with(part)
        })
}

#[test]
fn words_are_found_whole() {
    let text = "news, no newsletter; the_news (news)";
    let found: Vec<usize> = words(text, "news").collect();
    assert_eq!(found, [0, 31]);
}

#[test]
fn one_term_is_used_for_each_thing() {
    let places = [
        ("src", "rs"),
        ("bench", "rs"),
        ("servers", "rs"),
        ("tests/it", "rs"),
        ("lua", "lua"),
        ("lua", "md"),
        ("docs", "md"),
        ("packages", "ts"),
        ("packages", "tsx"),
        ("packages", "js"),
        ("packages", "css"),
        ("packages", "md"),
        ("examples", "js"),
        ("examples", "jsx"),
        ("examples", "md"),
    ];
    let mut texts: Vec<_> = places
        .iter()
        .flat_map(|(folder, extension)| files(folder, extension))
        .collect();
    for document in [
        "README",
        "ARCHITECTURE",
        "CHANGELOG",
        "CONTRIBUTING",
        "SECURITY",
    ] {
        let path = Path::new(document).with_extension("md");
        let text = crate::tidy::source(path.to_str().unwrap());
        texts.push((path, text));
    }
    let mut found = Vec::new();
    for (path, text) in &texts {
        if path.ends_with("words.rs") {
            continue;
        }
        for (word, instead) in INSTEAD {
            for at in words(text, word) {
                let line = text[..at].matches('\n').count() + 1;
                found.push(format!(
                    "{}:{line}: {word:?}; say {instead}",
                    path.display()
                ));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
