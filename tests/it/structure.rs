//! The structure of the sources: floors, no circles, and sizes that a reader can hold in mind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::tidy::{files, source};

/// No function is longer, from its signature to its closing brace.
const FUNCTION_MAX: usize = 70;

/// No file is longer; except the `tests.rs` of a pure module.
const FILE_MAX: usize = 400;

/// A source of the library: its module path below the crate, such as `["redis", "count", "lane"]`, and its code.
struct Source {
    module: Vec<String>,
    /// Whether it is a `mod.rs`.
    folder: bool,
    code: String,
}

/// Every source of the library, without comments and unit tests.
fn sources() -> Vec<Source> {
    files("src", "rs")
        .into_iter()
        .filter(|(path, _)| !path.ends_with("tests.rs"))
        .map(|(path, text)| {
            let mut module: Vec<String> = path
                .with_extension("")
                .iter()
                .skip(1)
                .map(|it| it.to_str().unwrap().to_owned())
                .collect();
            let folder = module.last().is_some_and(|it| it == "mod");
            if folder {
                module.pop();
            }
            let code = code(&text);
            Source {
                module,
                folder,
                code,
            }
        })
        .filter(|source| !matches!(source.module[0].as_str(), "lib" | "main"))
        .collect()
}

/// The text without comments, and without what follows `#[cfg(test)]`.
fn code(text: &str) -> String {
    text.lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// Every path that code names after `root`, with `{…}` expanded: `crate::{a::b, c}` names `a::b` and `c`.
fn paths(code: &str, root: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        let before = &code[..at];
        // `pub(in crate::x)` uses nothing.
        let within = before.ends_with(|it: char| it.is_alphanumeric() || it == '_' || it == ':');
        if within || before.ends_with("pub(in ") {
            continue;
        }
        expand(&code[at + root.len()..], &mut Vec::new(), &mut found);
    }
    found
}

/// Reads one path or one group in braces, and returns the rest of the text.
fn expand<'a>(
    text: &'a str,
    prefix: &mut Vec<String>,
    found: &mut BTreeSet<Vec<String>>,
) -> &'a str {
    let mut rest = text.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner.trim_start();
        while !rest.starts_with('}') && !rest.is_empty() {
            rest = expand(rest, prefix, found).trim_start();
            // Skips what is no path, such as `as name` or `,`.
            let next = rest.find([',', '}']).unwrap_or(rest.len());
            rest = rest[next..].trim_start_matches(',').trim_start();
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = rest
        .find(|it: char| !it.is_alphanumeric() && it != '_')
        .unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let depth = prefix.len();
    if !name.is_empty() && name != "self" {
        prefix.push(name.to_owned());
    }
    let rest = if let Some(deeper) = rest.strip_prefix("::") {
        expand(deeper, prefix, found)
    } else {
        found.insert(prefix.clone());
        rest
    };
    prefix.truncate(depth);
    rest
}

#[test]
fn paths_are_found_in_every_form() {
    let text = "use crate::clock::Clock;\nuse crate::{\n    auth, postgres::{self, Postgres as P},\n    cli,\n};\n\
                fn f(x: crate::http::X) {}\n";
    let found: Vec<String> = paths(text, "crate::")
        .into_iter()
        .map(|it| it.join("::"))
        .collect();
    let expected = [
        "auth",
        "cli",
        "clock::Clock",
        "http::X",
        "postgres",
        "postgres::Postgres",
    ];
    assert_eq!(found, expected);
}

/// The table in `src/lib.rs`: each module's floor.
fn floors() -> BTreeMap<String, u32> {
    let mut floors = BTreeMap::new();
    for line in source("src/lib.rs").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, floor, modules, ..] = cells.as_slice() else {
            continue;
        };
        if let Ok(floor) = floor.parse() {
            for module in modules.split(',') {
                let name = module.trim().trim_matches(|c| "[`]".contains(c));
                let before = floors.insert(name.to_owned(), floor);
                assert!(before.is_none(), "{name} is twice");
            }
        }
    }
    floors
}

#[test]
fn every_module_uses_lower_floors_only() {
    let floors = floors();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = &source.module[0];
        let own = floors.get(module);
        let own = *own.unwrap_or_else(|| panic!("{module} is on no floor of src/lib.rs"));
        for used in paths(&source.code, "crate::") {
            let used = &used[0];
            let floor = floors.get(used);
            let floor = floor.unwrap_or_else(|| panic!("{module} uses {used}, which is no module"));
            if *floor >= own && used != module {
                let path = source.module.join("::");
                wrong.push(format!("{path} (floor {own}) uses {used} (floor {floor})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_of_floors_names_every_module_and_no_other() {
    let declared: BTreeSet<String> = source("src/lib.rs")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()))
        .collect();
    let on_floors: BTreeSet<String> = floors().into_keys().collect();
    assert_eq!(declared, on_floors);
}

/// The modules that a source uses, each as its path; a `mod.rs` that re-exports a child does not use it.
fn uses(source: &Source, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let code: String = source
        .code
        .lines()
        .filter(|line| !line.starts_with("pub use ") && !line.starts_with("pub(super) use "))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut named = paths(&code, "crate::");
    let parent = &source.module[..source.module.len() - 1];
    for (root, base) in [("super::", parent), ("self::", &source.module)] {
        for path in paths(&code, root) {
            let up = path.iter().take_while(|it| *it == "super").count();
            let base = &base[..base.len().saturating_sub(up)];
            named.insert([base, &path[up..]].concat());
        }
    }
    if source.folder {
        let children = modules
            .iter()
            .filter(|it| it.len() == source.module.len() + 1 && it.starts_with(&source.module));
        for child in children {
            let name = child.last().unwrap();
            if !paths(&code, &format!("{name}::")).is_empty() {
                named.insert(child.clone());
            }
        }
    }
    let module_of = |mut path: Vec<String>| {
        while !modules.contains(&path) && !path.is_empty() {
            path.pop();
        }
        path
    };
    named.into_iter().map(module_of).collect()
}

/// Whether `from` uses `to`, or something that does.
fn reaches(edges: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut left) = (BTreeSet::from([from]), vec![from]);
    while let Some(at) = left.pop() {
        if at == to {
            return true;
        }
        for next in edges.get(at).into_iter().flatten() {
            if seen.insert(next) {
                left.push(next);
            }
        }
    }
    false
}

#[test]
fn no_files_of_a_folder_use_each_other_in_a_circle() {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|it| it.module.clone()).collect();
    let mut circles = Vec::new();
    for folder in sources.iter().filter(|it| it.folder) {
        let depth = folder.module.len();
        // A file of the folder, a whole folder within it, or its `mod.rs`, which has no name.
        let member = |module: &[String]| module.get(depth).cloned().unwrap_or_default();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for source in sources
            .iter()
            .filter(|it| it.module.starts_with(&folder.module))
        {
            let from = member(&source.module);
            for used in uses(source, &modules) {
                if used.starts_with(&folder.module) && member(&used) != from {
                    edges.entry(from.clone()).or_default().insert(member(&used));
                }
            }
        }
        for (from, used) in &edges {
            for used in used.iter().filter(|it| reaches(&edges, it, from)) {
                circles.push(format!(
                    "{}: {from:?} uses {used:?}",
                    folder.module.join("::")
                ));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

/// Each function of a source that `rustfmt` has formatted, with its length in lines.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let signature = line.trim_start();
        let words = signature.split(['(', '<']).next().unwrap();
        let mut words = words.split(' ').rev();
        let (name, keyword) = (words.next().unwrap(), words.next());
        if keyword != Some("fn") || signature.starts_with("//") {
            continue;
        }
        let body = lines[at..].iter().find(|it| it.ends_with(['{', ';', '}']));
        if body.is_some_and(|it| it.ends_with(';')) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - signature.len()]);
        let length = lines[at..].iter().position(|it| *it == end);
        found.push((name.to_owned(), length.map_or(1, |it| it + 1)));
    }
    found
}

#[test]
fn no_function_and_no_file_is_too_long() {
    let mut long = Vec::new();
    for (path, text) in ["src", "bench/src"].iter().flat_map(|it| files(it, "rs")) {
        let path = path.display();
        for (name, length) in functions(&text) {
            if length > FUNCTION_MAX {
                long.push(format!("{path}: {name} has {length} lines"));
            }
        }
        let length = text.lines().count();
        if length > FILE_MAX && Path::new(&path.to_string()).file_name().unwrap() != "tests.rs" {
            long.push(format!("{path} has {length} lines"));
        }
    }
    for (path, text) in files("lua", "lua") {
        let length = text.lines().count();
        if length > FILE_MAX {
            long.push(format!("{} has {length} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}
