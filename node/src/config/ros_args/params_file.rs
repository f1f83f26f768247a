//! `--params-file FILE`: for each node, or pattern of nodes, a map under `ros__parameters`.
//!
//! Node names may be nested (`/ns:` over `node:`), and so may parameters (`scheduler:` over `queue_len:`, the same as
//! `scheduler.queue_len:`). Several documents count as one. Everything is bounded: the file's size, nesting, the
//! length of names and the number of values.

use std::{fs::File, io::Read as _, path::Path};

use super::{
    node_pattern::NodePattern,
    parameter::{MAX_RULES, ParameterRule, check_name_len},
    yaml::{Fault, Item, Items, MAX_DEPTH, quoted},
};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The key above a node's parameters.
const PARAMETERS: &str = "ros__parameters";

/// Reads a file.
///
/// # Errors
/// File, line and what is wrong there.
pub fn read(path: &Path) -> Result<Vec<ParameterRule>, String> {
    let shown = path.display();
    let text = read_bounded(path).map_err(|fact| format!("{shown}: {fact}"))?;
    parse(&text, &shown.to_string())
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // Opening a pipe would wait for whoever is to write into it.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("not a regular file, one expected".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes, the most that is read"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8 text")
    })
}

/// Parses the text of a file called `shown`.
///
/// # Errors
/// File, line and what is wrong there.
pub fn parse(text: &str, shown: &str) -> Result<Vec<ParameterRule>, String> {
    let mut reader = Reader { items: Items::new(text), shown, rules: Vec::new() };
    match reader.documents() {
        Ok(()) => Ok(reader.rules),
        Err(Fault { line, fact }) => Err(format!("{shown}:{line}: {fact}")),
    }
}

struct Reader<'a> {
    items: Items<'a>,
    shown: &'a str,
    rules: Vec<ParameterRule>,
}

impl Reader<'_> {
    fn documents(&mut self) -> Result<(), Fault> {
        loop {
            match self.items.next()? {
                (Item::End, _) => return Ok(()),
                (Item::MapStart, _) => self.nodes("", 1)?,
                // A document with nothing but comments.
                (Item::Scalar(text, ..), _) if text.is_empty() => {}
                (other, line) => {
                    let fact =
                        format!("{} found, node names with {PARAMETERS} under them expected", other.kind());
                    return Err(Fault::new(line, fact));
                }
            }
        }
    }

    /// A map of node names under `path`, up to its end.
    fn nodes(&mut self, path: &str, depth: usize) -> Result<(), Fault> {
        while let Some((key, line)) = self.key(depth)? {
            let (value, value_line) = self.items.next()?;
            if key != PARAMETERS {
                if !matches!(value, Item::MapStart) {
                    let fact =
                        format!("{} found under {:?}, {PARAMETERS} expected", value.kind(), quoted(&key));
                    return Err(Fault::new(value_line, fact));
                }
                let gap = if path.is_empty() || path.ends_with('/') { "" } else { "/" };
                let path = format!("{path}{gap}{key}");
                check_name_len(&path).map_err(|fact| Fault::new(line, fact))?;
                self.nodes(&path, depth + 1)?;
                continue;
            }
            if path.is_empty() {
                return Err(Fault::new(line, format!("{PARAMETERS} found, a node's name above it expected")));
            }
            if !matches!(value, Item::MapStart) {
                let fact = format!("{} found under {PARAMETERS}, a map of parameters expected", value.kind());
                return Err(Fault::new(value_line, fact));
            }
            let nodes = NodePattern::parse(path).map_err(|fact| Fault::new(line, fact))?;
            self.parameters(&nodes, "", depth + 1)?;
        }
        Ok(())
    }

    /// A map of parameters whose names begin with `prefix`, up to its end.
    fn parameters(&mut self, nodes: &NodePattern, prefix: &str, depth: usize) -> Result<(), Fault> {
        while let Some((key, line)) = self.key(depth)? {
            let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            check_name_len(&name).map_err(|fact| Fault::new(line, fact))?;
            let (first, value_line) = self.items.next()?;
            if matches!(first, Item::MapStart) {
                self.parameters(nodes, &name, depth + 1)?;
                continue;
            }
            let value = self
                .items
                .value(&first, value_line)
                .map_err(|fault| Fault::new(fault.line, format!("`{}`: {}", quoted(&name), fault.fact)))?;
            if self.rules.len() >= MAX_RULES {
                return Err(Fault::new(
                    line,
                    format!("more than {MAX_RULES} parameters, the most that are read"),
                ));
            }
            self.rules.push(ParameterRule {
                nodes: nodes.clone(),
                name,
                value,
                origin: format!("--params-file {}:{line}", self.shown),
                is_shared: !nodes.is_exact(),
            });
        }
        Ok(())
    }

    /// The next key of a map, or `None` at its end.
    fn key(&mut self, depth: usize) -> Result<Option<(String, usize)>, Fault> {
        let (item, line) = self.items.next()?;
        if depth > MAX_DEPTH {
            return Err(Fault::new(
                line,
                format!("nested deeper than {MAX_DEPTH} maps, the most that is read"),
            ));
        }
        match item {
            Item::MapEnd => Ok(None),
            Item::Scalar(text, ..) if text.is_empty() => Err(Fault::new(line, "no name found, one expected")),
            Item::Scalar(text, ..) => Ok(Some((text.into_owned(), line))),
            other => Err(Fault::new(line, format!("{} found, a name expected", other.kind()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::ros::ParameterValue as V;

    fn rules(text: &str) -> Vec<(String, String, V)> {
        let rules = parse(text, "p.yaml").unwrap_or_else(|fault| panic!("{fault}"));
        rules.into_iter().map(|rule| (rule.nodes.to_string(), rule.name, rule.value)).collect()
    }

    fn rule(nodes: &str, name: &str, value: V) -> (String, String, V) {
        (nodes.to_owned(), name.to_owned(), value)
    }

    #[test]
    fn what_ros2_launch_writes_is_read() {
        let text = "/arm/left:\n  ros__parameters:\n    engine.dir: /opt/engines/demo\n    realtime.cores: !!python/tuple\n    - 2\n    - 3\n    use_sim_time: true\n";
        let found = parse(text, "/tmp/launch_params_x").unwrap();
        assert_eq!(
            rules(text),
            [
                rule("/arm/left", "engine.dir", V::String("/opt/engines/demo".into())),
                rule("/arm/left", "realtime.cores", V::IntegerArray(vec![2, 3])),
                rule("/arm/left", "use_sim_time", V::Bool(true)),
            ]
        );
        assert_eq!(found[1].origin, "--params-file /tmp/launch_params_x:4");
        assert!(!found[1].is_shared);
    }

    #[test]
    fn nested_and_flat_names_mean_the_same() {
        let nested = "/**:\n  ros__parameters:\n    scheduler:\n      queue_len: 8\n      a: {b: [x], c: 1.0}\n    z: 'q'\n";
        let flat = "/**:\n  ros__parameters:\n    scheduler.queue_len: 8\n    scheduler.a.b: ['x']\n    scheduler.a.c: 1.0\n    z: q\n";
        assert_eq!(rules(nested), rules(flat));
        assert!(parse(nested, "").unwrap().iter().all(|rule| rule.is_shared));
    }

    #[test]
    fn several_nodes_nested_names_patterns_and_documents_stand_in_one_file() {
        let text = "# config\n---\n\
            lidar_ns:\n  lidar_1:\n    ros__parameters: {id: 1}\n  lidar_2:\n    ros__parameters: {id: 2}\n\
            /:\n  my_node:\n    ros__parameters: {id: 3}\n\
            /foo10/**/bar:\n  bar1/bar2/**:\n    ros__parameters: {id: 4}\n\
            /foo5:\n  \"*\":\n    ros__parameters: {id: 5}\n\
            empty: {}\nnothing:\n  ros__parameters: {}\n\
            ---\n# only a comment\n---\n/*/node:\n  ros__parameters: {id: 6, id: 7}\n";
        assert_eq!(
            rules(text),
            [
                rule("/lidar_ns/lidar_1", "id", V::Integer(1)),
                rule("/lidar_ns/lidar_2", "id", V::Integer(2)),
                rule("/my_node", "id", V::Integer(3)),
                rule("/foo10/**/bar/bar1/bar2/**", "id", V::Integer(4)),
                rule("/foo5/*", "id", V::Integer(5)),
                rule("/*/node", "id", V::Integer(6)),
                rule("/*/node", "id", V::Integer(7)),
            ]
        );
        assert!(rules("").is_empty() && rules("# nothing\n").is_empty());
    }

    #[test]
    fn faults_have_their_file_and_line() {
        for (text, fault) in [
            ("a:\n  ros__parameters:\n    id:\n    x: 1\n", "p.yaml:3: `id`: no value found"),
            ("ros__parameters:\n  id: 1\n", "p.yaml:1: ros__parameters found, a node's name above it"),
            ("a:\n  id: 1\n", "p.yaml:2: a single value found under \"id\", ros__parameters expected"),
            ("a: [1]\n", "p.yaml:1: a list found under \"a\""),
            ("a:\n  ros__parameters:\n  - id: 1\n", "p.yaml:3: a list found under ros__parameters, a map"),
            ("a:\n  ros__parameters:\n", "p.yaml:2: a single value found under ros__parameters, a map"),
            ("- a\n", "p.yaml:1: a list found, node names"),
            ("text\n", "p.yaml:1: a single value found, node names"),
            ("/foo**:\n  ros__parameters:\n    id: 1\n", "p.yaml:2: node name \"/foo**\": * and **"),
            ("/foo:\n  /*:\n    ros__parameters:\n", "p.yaml:3: a single value"),
            ("/foo:\n  /*:\n    ros__parameters: {}\n", "p.yaml:3: node name \"/foo//*\""),
            ("a:\n  ros__parameters:\n    x: [1, 'a']\n", "p.yaml:3: `x`: \"a\" (string) in a list"),
            ("a:\n  ros__parameters:\n    x: [[1]]\n", "p.yaml:3: `x`: a list found within a list"),
            ("a:\n  ros__parameters:\n    x: &x 1\n    y: *x\n", "p.yaml:4: an alias"),
            ("a:\n  ros__parameters:\n    ? [x]\n    : 1\n", "p.yaml:3: a list found, a name expected"),
            ("a:\n  ros__parameters:\n    '': 1\n", "p.yaml:3: no name found"),
            ("a:\n  ros__parameters:\n    x: 1\n   y: 2\n", "p.yaml:4: "),
            ("a:\n  ros__parameters:\n\tx: 1\n", "p.yaml:3: "),
            ("a:\n  ros__parameters:\n    x: 'open\n", "p.yaml:"),
        ] {
            let found = parse(text, "p.yaml").unwrap_err();
            assert!(found.starts_with(fault), "{text:?}: {fault:?} expected, {found:?} found");
        }
    }

    #[test]
    fn files_that_are_none_and_files_that_are_too_large_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            read(&path).unwrap_err()
        };
        assert!(read(&folder.path().join("none.yaml")).unwrap_err().contains("none.yaml: cannot be read"));
        assert!(read(folder.path()).unwrap_err().contains("not a regular file"));
        assert!(read(Path::new("/dev/zero")).unwrap_err().contains("not a regular file"));
        assert!(at("large.yaml", &vec![b'#'; (1 << 20) + 1]).contains("larger than 1048576 bytes"));
        assert!(at("latin1.yaml", b"# ok\n# gr\xfc\xdfe\n").contains("line 2 is not UTF-8"));
        std::fs::write(folder.path().join("full.yaml"), vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(read(&folder.path().join("full.yaml")).unwrap(), []);
    }

    #[test]
    fn numbers_and_depths_and_lengths_are_bounded() {
        let many: String = (0..=MAX_RULES).map(|i| format!("  p{i}: 1\n")).collect();
        let fault = parse(&format!("a:\n ros__parameters:\n{many}"), "p").unwrap_err();
        assert!(fault.contains("more than 4096 parameters"), "{fault}");
        for (open, close) in [("{a: ", "}"), ("{ros__parameters: ", "}")] {
            let text = format!("n: {{ros__parameters: {}1{}}}", open.repeat(100), close.repeat(100));
            let fault = parse(&text, "p").unwrap_err();
            assert!(fault.contains("nested deeper than 32"), "{fault}");
        }
        let fault = parse(&format!("{}ros__parameters: {{}}", "{a: ".repeat(100)), "p").unwrap_err();
        assert!(fault.contains("nested deeper than 32"), "{fault}");
        // Otherwise every one of many parameters would repeat the name of a huge map.
        let fault =
            parse(&format!("n: {{ros__parameters: {{{}: {{x: 1}}}}}}", "k".repeat(1000)), "p").unwrap_err();
        assert!(fault.contains("at most 512") && fault.len() < 200, "{fault}");
    }

    #[test]
    fn nothing_of_a_mebibyte_hangs_or_panics() {
        // A billion laughs, and whatever a scanner may look back or ahead for.
        let laughs: String = (0..30).map(|i| format!("  l{}: [*l{i}, *l{i}]\n", i + 1)).collect();
        let mut texts = vec![format!("a:\n ros__parameters:\n  l0: &l0 1\n{laughs}")];
        for unit in [
            "[",
            "{",
            "- ",
            "? ",
            ": ",
            "a: ",
            "&a ",
            "!t ",
            "'",
            "\"",
            "\\",
            "|\n",
            "- -\n",
            "[a,",
            "{a: ",
            " ",
            "\n",
            "\t",
            "---\n",
            "...\n",
            "%TAG ! a\n",
            "!<a> ",
            "? a\n",
            ",",
            "[?",
            "''",
            "\r",
            "\u{feff}",
            "\0",
            "é",
            "a b ",
            "[{",
            "#",
        ] {
            texts.push(unit.repeat((1 << 20) / unit.len()));
            texts.push(format!("n: {{ros__parameters: {{a: {}", unit.repeat((1 << 16) / unit.len())));
        }
        texts.push((0..1400).map(|i| format!("{}a:\n", " ".repeat(i))).collect());
        for text in texts {
            let started = Instant::now();
            let _ = parse(&text, "nasty.yaml");
            // Generous: an unoptimized build on a busy machine takes some 200 ms for the worst of them.
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", quoted(&text));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "a", ":", ": ", "\n", "\n  ", "\n    ", " ", "-", "- ", "[", "]", "{", "}", ",", "?", "? ", "'", "\"", "\\x4", "&a", "*a",
                "!!str ", "!!python/tuple ", "!", "|", ">-", "---\n", "...\n", "%YAML 1.2\n", "#", " #", "\t", "\r", "\u{feff}", "é", "\0",
                "ros__parameters", "/**", "1", "0x", ".inf", "~", "@", "`",
            ]), 0..40),
        ) {
            let _ = parse(&parts.concat(), "p");
            let _ = parse(&format!("/**:\n  ros__parameters:\n    a: {}", parts.concat()), "p");
        }

        #[test]
        fn no_characters_make_the_reader_panic(text in "\\PC{0,60}") {
            let _ = parse(&text, "p");
            let _ = super::super::yaml::parse_value(&text);
        }
    }
}
