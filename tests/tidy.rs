//! The rules of the source that the compiler does not know: which module may import which, and what is not written here.
//!
//! Every rule is shown a bad sample and has to object. A line that breaks a rule for a good reason says
//! `// tidy: <reason>` at its end.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first: the table of docs/design.md. A module imports from its own subtree, from lower layers, and
/// from the siblings named in [`SIBLINGS`].
struct Layers(Vec<Vec<String>>);

impl Layers {
    /// Reads the rows that look like `| 1 storage, transport | disk, state, log; wire |`.
    fn parse(design: &str) -> Layers {
        let rows = (0..).map_while(|number: usize| {
            let row = design.lines().find(|line| line.starts_with(&format!("| {number} ")))?;
            let modules = row.split('|').nth(2)?;
            Some(modules.split([',', ';']).map(|name| name.trim().to_owned()).collect())
        });
        Layers(rows.collect())
    }

    fn of_the_design() -> Layers {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/design.md");
        Layers::parse(&fs::read_to_string(path).unwrap())
    }

    fn of(&self, module: &str) -> Option<usize> {
        self.0.iter().position(|layer| layer.iter().any(|name| name == module))
    }
}

/// Imports within a layer: (who, whom). Layer 0 is one vocabulary and needs no list.
const SIBLINGS: [(&str, &str); 17] = [
    ("disk", "log"), // the mapping only
    ("log", "disk"),
    ("state", "disk"),
    ("channel", "wire"),
    ("runtime", "channel"),
    ("quorum", "progress"),
    ("roster", "progress"),
    ("roster", "quorum"),
    ("feeder", "commit"),
    ("replica", "apply"),
    ("archive", "apply"),
    ("node", "config"),
    ("node", "stats"),
    ("stats", "config"),
    ("sim", "config"),
    ("sim", "node"),
    ("sim", "stats"),
];

/// Lines of a file, its tests not counted.
const LONGEST_FILE: usize = 600;
const ONLY_UNSAFE: &str = "log/mmap.rs";
const ONLY_CLOCK: &str = "clock.rs";

/// A source file, with what the rules do not look at blanked out: comments, strings, and items under `#[cfg(test)]`.
struct Source {
    path: String,
    lines: Vec<Line>,
}

struct Line {
    code: String,
    comment: String,
    in_test: bool,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let mut lines = strip(text);
        mark_tests(&mut lines);
        if path.ends_with("_tests.rs") || path.ends_with("/tests.rs") {
            lines.iter_mut().for_each(|line| line.in_test = true);
        }
        Source { path: path.to_owned(), lines }
    }

    fn is_bin(&self) -> bool {
        self.path.starts_with("bin/")
    }

    /// The top module: `log` for log/mmap.rs.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

/// Splits a text into code and comment, with the contents of strings and character literals blanked.
fn strip(text: &str) -> Vec<Line> {
    enum In {
        Code,
        Block(usize),
        Text { hashes: Option<usize> },
    }
    let mut state = In::Code;
    let mut lines = Vec::new();
    for raw in text.lines() {
        let bytes = raw.as_bytes();
        let (mut code, mut comment, mut at) = (String::new(), String::new(), 0);
        while at < bytes.len() {
            let rest = &raw[at..];
            let step = rest.chars().next().map_or(1, char::len_utf8);
            match state {
                In::Block(depth) if rest.starts_with("*/") => {
                    state = if depth == 1 { In::Code } else { In::Block(depth - 1) };
                    at += 2;
                }
                In::Block(depth) if rest.starts_with("/*") => {
                    state = In::Block(depth + 1);
                    at += 2;
                }
                In::Block(_) => {
                    comment.push_str(&rest[..step]);
                    at += step;
                }
                In::Text { hashes: None } if rest.starts_with('\\') => at += 2,
                In::Text { hashes } => {
                    let end = format!("\"{}", "#".repeat(hashes.unwrap_or(0)));
                    if rest.starts_with(&end) {
                        state = In::Code;
                        code.push('"');
                        at += end.len();
                    } else {
                        at += step;
                    }
                }
                In::Code if rest.starts_with("//") => {
                    comment.push_str(rest);
                    at = bytes.len();
                }
                In::Code if rest.starts_with("/*") => {
                    state = In::Block(1);
                    at += 2;
                }
                In::Code => {
                    let follows_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
                    let hashes = rest[1.min(rest.len())..].bytes().take_while(|b| *b == b'#').count();
                    if rest.starts_with('r')
                        && (!follows_word || code.ends_with('b'))
                        && rest[1 + hashes..].starts_with('"')
                    {
                        state = In::Text { hashes: Some(hashes) };
                        code.push('"');
                        at += 2 + hashes;
                    } else if rest.starts_with('"') {
                        state = In::Text { hashes: None };
                        code.push('"');
                        at += 1;
                    } else if let Some(len) = char_literal(rest) {
                        code.push_str("' '");
                        at += len;
                    } else {
                        code.push_str(&rest[..step]);
                        at += step;
                    }
                }
            }
        }
        lines.push(Line { code, comment, in_test: false });
    }
    lines
}

/// The length of the character literal that `rest` starts with; `None` for a lifetime and anything else.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        return Some(1 + 2 + inner[2..].find('\'')? + 1);
    }
    let len = inner.chars().next()?.len_utf8();
    inner[len..].starts_with('\'').then_some(len + 2)
}

/// Marks the item behind every `#[cfg(test)]`, up to its closing brace or semicolon.
fn mark_tests(lines: &mut [Line]) {
    let mut at = 0;
    while at < lines.len() {
        if !lines[at].code.trim_start().starts_with("#[cfg(test)]") {
            at += 1;
            continue;
        }
        let (mut depth, mut opened) = (0i64, false);
        while at < lines.len() {
            lines[at].in_test = true;
            for c in lines[at].code.chars() {
                match c {
                    '{' => (depth, opened) = (depth + 1, true),
                    '}' => depth -= 1,
                    _ => {}
                }
            }
            let ended = if opened { depth == 0 } else { lines[at].code.trim_end().ends_with(';') };
            at += 1;
            if ended {
                break;
            }
        }
    }
}

fn has_word(code: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(inside) && !code[at + word.len()..].starts_with(inside))
}

type Rule = fn(&Source, &Line) -> Option<String>;

/// The rules that look at one line. Each comes with a line that it has to catch, in a file of that name.
const RULES: [(&str, &str, &str, Rule); 10] = [
    ("sleep", "feeder/mod.rs", "std::thread::sleep(pause);", |_, line| {
        (has_word(&line.code, "sleep") && line.code.contains("sleep("))
            .then(|| "sleeps: wait on the event itself".into())
    }),
    ("clock", "node/mod.rs", "let t = Instant::now();", |source, line| {
        let reads = line.code.contains("Instant::now") || line.code.contains("SystemTime::now");
        (reads && source.path != ONLY_CLOCK).then(|| "reads a clock outside clock.rs".into())
    }),
    ("unsafe", "log/segment.rs", "let x = unsafe { *p };", |source, line| {
        (has_word(&line.code, "unsafe") && source.path != ONLY_UNSAFE)
            .then(|| "unsafe outside log/mmap.rs".into())
    }),
    ("unwrap", "wire/frame.rs", "let x = y.unwrap();", |_, line| {
        (!line.in_test && line.code.contains(".unwrap()")).then(|| "unwraps: return a typed error".into())
    }),
    ("expect", "wire/frame.rs", "let x = y.expect(\"never\");", |_, line| {
        (!line.in_test && line.code.contains(".expect(")).then(|| "expects: return a typed error".into())
    }),
    ("print", "node/mod.rs", "println!(\"{x}\");", |source, line| {
        let prints = ["println!", "eprintln!", "print!", "eprint!", "dbg!"].iter().any(|macro_name| {
            has_word(&line.code, macro_name.trim_end_matches('!')) && line.code.contains(macro_name)
        });
        (prints && !line.in_test && !source.is_bin()).then(|| "the library prints nothing: use log".into())
    }),
    ("hash order", "feeder/mod.rs", "let m: HashMap<u8, u8>;", |source, line| {
        let hashed = has_word(&line.code, "HashMap") || has_word(&line.code, "HashSet");
        (hashed && !line.in_test && !source.is_bin())
            .then(|| "hash order differs from run to run: use BTreeMap or a Vec".into())
    }),
    ("getter", "ids.rs", "pub fn get_term(&self) -> Term {", |_, line| {
        line.code.contains("fn get_").then(|| "a getter is named after what it tells".into())
    }),
    ("later", "node/mod.rs", "// TODO: cut", |_, line| {
        (has_word(&line.comment, "TODO") || has_word(&line.comment, "FIXME") || line.code.contains("todo!("))
            .then(|| "unfinished: write it, or say in docs that it is missing".into())
    }),
    ("thread", "feeder/mod.rs", "std::thread::spawn(move || work());", |source, line| {
        let spawns = line.code.contains("thread::spawn(") || line.code.contains("thread::Builder");
        (spawns && !line.in_test && !source.is_bin() && !source.path.starts_with("runtime"))
            .then(|| "threads are started by the runtime only".into())
    }),
];

/// The modules that a line names as `crate::…`, the group `crate::{a, b::c}` included.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    found.push(word(&group[start..at]));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// What breaks the layer table in one file. Names at the crate's root (macros, re-exports) begin with a capital letter
/// and are no module.
fn misplaced_imports(source: &Source, layers: &Layers) -> Vec<String> {
    let own = source.module();
    if source.is_bin() || own == "lib" {
        return Vec::new();
    }
    let Some(layer) = layers.of(own) else {
        return vec![format!(
            "{}: module {own} is in no layer: add it to the table in docs/design.md",
            source.path
        )];
    };
    // A group may span lines, so the file is read as one text.
    let code: String =
        source.lines.iter().filter(|line| !line.in_test).map(|line| format!("{} ", line.code)).collect();
    let mut wrong = Vec::new();
    for name in imports(&code) {
        if name == own || name.starts_with(char::is_uppercase) {
            continue;
        }
        let allowed = match layers.of(&name) {
            Some(other) if other < layer || (other == 0 && layer == 0) => true,
            Some(other) => other == layer && SIBLINGS.contains(&(own, name.as_str())),
            None => false,
        };
        if !allowed {
            wrong.push(format!("{}: {own} may not import crate::{name}", source.path));
        }
    }
    wrong
}

fn complaints(source: &Source, layers: &Layers) -> Vec<String> {
    let mut found = misplaced_imports(source, layers);
    let len = source.lines.iter().filter(|line| !line.in_test).count();
    if len > LONGEST_FILE {
        found.push(format!("{}: {len} lines: which second subject moved in?", source.path));
    }
    for (number, line) in source.lines.iter().enumerate() {
        if line.comment.split("tidy:").nth(1).is_some_and(|reason| reason.trim().len() > 5) {
            continue;
        }
        for (_, _, _, rule) in RULES {
            if let Some(why) = rule(source, line) {
                found.push(format!("{}:{}: {why}", source.path, number + 1));
            }
        }
    }
    found
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for item in fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                into.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            Source::new(name, &fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn the_source_is_tidy() {
    let (sources, layers) = (sources(), Layers::of_the_design());
    assert!(sources.len() > 10, "the source was not found");
    let found: Vec<String> = sources.iter().flat_map(|source| complaints(source, &layers)).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// A table like the design's, for the rules' own tests.
fn sample_layers() -> Layers {
    Layers::parse(
        "| layer | modules |\n|---|---|\n| 0 vocabulary | ids, entry |\n| 1 storage | disk, log; wire, channel |\n\
         | 2 decisions | quorum, progress |\n| 3 actors | commit, feeder, replica |\n| 4 composition | node |\n",
    )
}

#[test]
fn the_layer_table_is_read_from_the_design() {
    let layers = Layers::of_the_design();
    assert_eq!(layers.0.len(), 6);
    assert_eq!((layers.of("ids"), layers.of("log"), layers.of("node")), (Some(0), Some(1), Some(5)));
    assert_eq!(sample_layers().of("channel"), Some(1));
    assert_eq!(sample_layers().of("nothing"), None);
}

#[test]
fn every_rule_catches_its_bad_sample_and_nothing_in_text_comment_or_excuse() {
    for (name, path, sample, rule) in RULES {
        let caught = |text: &str| {
            let source = Source::new(path, text);
            source.lines.iter().any(|line| rule(&source, line).is_some())
        };
        assert!(caught(sample), "{name} misses its sample");
        assert!(!caught(&format!("let s = r#\"{sample}\"#;")), "{name} reads strings");
        if name != "later" {
            assert!(!caught(&format!("// {sample}")), "{name} reads comments");
            let excused = Source::new(path, &format!("{sample} // tidy: sample of a reason"));
            assert!(
                complaints(&excused, &sample_layers()).iter().all(|why| !why.contains(":1:")),
                "{name} takes no excuse"
            );
        }
        let no_reason = Source::new(path, &format!("{sample} // tidy:"));
        assert!(
            !complaints(&no_reason, &sample_layers()).is_empty(),
            "{name} takes an excuse without a reason"
        );
    }
}

#[test]
fn tests_may_unwrap_and_what_follows_them_may_not() {
    let text = "#[cfg(test)]\nmod tests {\n    fn a() { b.unwrap() }\n}\nfn c() { d.unwrap() }\n";
    assert_eq!(
        complaints(&Source::new("ids.rs", text), &sample_layers()),
        ["ids.rs:5: unwraps: return a typed error"]
    );
    let declared = "#[cfg(test)]\nmod tests;\nfn c() { d.unwrap() }\n";
    assert_eq!(complaints(&Source::new("ids.rs", declared), &sample_layers()).len(), 1);
    assert!(
        complaints(&Source::new("log/recover_tests.rs", "fn a() { b.unwrap() }"), &sample_layers())
            .is_empty()
    );
}

#[test]
fn imports_against_the_layers_are_caught_in_every_form() {
    let wrong = |path: &str, text: &str| misplaced_imports(&Source::new(path, text), &sample_layers()).len();
    assert_eq!(wrong("log/mod.rs", "use crate::ids::Vlsn;\nuse crate::log::mmap;\nuse crate::Watermark;"), 0);
    assert_eq!(wrong("log/mod.rs", "use crate::feeder::Feeder;"), 1);
    assert_eq!(wrong("log/mod.rs", "fn f(x: crate::channel::Peer) {}"), 1, "the two halves of layer 1");
    assert_eq!(wrong("quorum.rs", "use crate::{ids::Vlsn, node::{Node, a}, feeder};"), 2);
    assert_eq!(wrong("quorum.rs", "use crate::{\n    ids::Vlsn,\n    commit,\n};"), 1);
    assert_eq!(wrong("feeder/mod.rs", "use crate::replica::Replica;"), 1, "actors are strangers");
    assert_eq!(wrong("feeder/mod.rs", "use crate::commit::Gate;"), 0);
    assert_eq!(wrong("ids.rs", "#[cfg(test)]\nmod tests { use crate::node::Node; }"), 0);
    assert_eq!(wrong("surprise.rs", ""), 1, "a module in no layer");
}

#[test]
fn a_long_file_is_noticed() {
    let long = "\n".repeat(LONGEST_FILE + 1);
    assert_eq!(complaints(&Source::new("ids.rs", &long), &sample_layers()).len(), 1);
}
