//! A JSON text as a tree that knows where in the text each value stands.
//!
//! `serde_json` gives the place of an error in the syntax, but none for a value that is well
//! formed and wrong; a person who has to correct a file needs both. It also keeps the last of
//! two equal keys, where a setting would be ignored without a word: here that is an error.

use std::fmt;

use super::reader::Misfit;

/// A place in a text; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl Position {
    /// The place of the byte at `offset` of `text`.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or(before);
        Self {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The way from the top of a document to one value, printed as `repositories[0].path`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Path(Vec<Segment>);

/// One step of a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Field(String),
    Index(usize),
}

impl Path {
    pub(super) fn field(mut self, name: &str) -> Self {
        self.0.push(Segment::Field(name.to_owned()));
        self
    }

    pub(super) fn index(mut self, index: usize) -> Self {
        self.0.push(Segment::Index(index));
        self
    }
}

impl From<&serde_path_to_error::Path> for Path {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as Theirs;
        let segments = path.iter().filter_map(|segment| match segment {
            Theirs::Seq { index } => Some(Segment::Index(*index)),
            Theirs::Map { key } => Some(Segment::Field(key.clone())),
            Theirs::Enum { .. } | Theirs::Unknown => None,
        });
        Self(segments.collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if is_plain(name) => {
                    let dot = if number == 0 { "" } else { "." };
                    write!(f, "{dot}{name}")?;
                }
                // Quoted, so that a name with a dot or a control character cannot mislead.
                Segment::Field(name) => write!(f, "[{name:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.chars().all(plain)
}

/// A value and where it starts.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) offset: usize,
    pub(super) value: Value,
}

/// The kinds of JSON values.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text, which is the order in which errors are reported.
    Object(Vec<(Key, Node)>),
}

/// A field's name and where it starts.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) offset: usize,
    pub(super) name: String,
}

/// Why a text is no tree.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) position: Position,
    pub(super) reason: String,
}

impl Node {
    /// Parses a whole JSON document.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        // serde_json refuses what is not JSON, and nesting deeper than 128, which bounds the
        // recursion below.
        if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
            return Err(Malformed::from_json(&error));
        }
        Scanner { text, offset: 0 }.value()
    }

    /// Where the value at `path` starts, or the innermost value on the way that is there.
    pub(super) fn locate(&self, path: &Path) -> usize {
        let mut here = self;
        for segment in &path.0 {
            let Some((_, next)) = here.child(segment) else {
                break;
            };
            here = next;
        }
        here.offset
    }

    /// Where the field's name starts, if the object at `parent` has the field.
    pub(super) fn locate_key(&self, parent: &Path, field: &str) -> Option<usize> {
        let mut here = self;
        for segment in &parent.0 {
            here = here.child(segment)?.1;
        }
        here.child(&Segment::Field(field.to_owned()))
            .and_then(|(key, _)| key)
    }

    /// The path and the offset to name for a value that does not fit its type.
    pub(super) fn blame(&self, path: Path, misfit: &Misfit) -> (Path, usize) {
        match misfit {
            // The path of the error may end at the object or at the field; the name is at fault.
            Misfit::UnknownField { field, .. } => {
                let parent = match path.0.split_last() {
                    Some((Segment::Field(last), parent))
                        if last == field && self.locate_key(&path, field).is_none() =>
                    {
                        Path(parent.to_vec())
                    }
                    _ => path,
                };
                let offset = self.locate_key(&parent, field);
                let offset = offset.unwrap_or_else(|| self.locate(&parent));
                (parent.field(field), offset)
            }
            // Where the object starts that lacks it.
            Misfit::MissingField(field) => (path.clone().field(field), self.locate(&path)),
            Misfit::Other(_) => {
                let offset = self.locate(&path);
                (path, offset)
            }
        }
    }

    fn child(&self, segment: &Segment) -> Option<(Option<usize>, &Self)> {
        match (segment, &self.value) {
            (Segment::Index(index), Value::List(items)) => items.get(*index).map(|n| (None, n)),
            (Segment::Field(name), Value::Object(fields)) => fields
                .iter()
                .find(|(key, _)| key.name == *name)
                .map(|(key, node)| (Some(key.offset), node)),
            _ => None,
        }
    }

    /// The path of the first text or field name that contains a NUL.
    pub(super) fn find_nul(&self, here: Path) -> Option<Path> {
        match &self.value {
            Value::Text(text) => text.contains('\0').then_some(here),
            Value::List(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, node)| node.find_nul(here.clone().index(index))),
            Value::Object(fields) => fields.iter().find_map(|(key, node)| {
                let path = here.clone().field(&key.name);
                if key.name.contains('\0') {
                    Some(path)
                } else {
                    node.find_nul(path)
                }
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => None,
        }
    }
}

impl Malformed {
    fn from_json(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // serde_json ends its messages with the place, which is said in front here.
        let reason = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(what, _)| what);
        Self {
            position: Position {
                line: error.line().max(1),
                column: error.column().max(1),
            },
            reason: format!("not valid JSON: {reason}"),
        }
    }
}

/// Walks over a text that is known to be JSON.
struct Scanner<'t> {
    text: &'t str,
    offset: usize,
}

impl Scanner<'_> {
    fn value(&mut self) -> Result<Node, Malformed> {
        let first = self.peek();
        let offset = self.offset;
        let value = match first {
            b'{' => Value::Object(self.fields()?),
            b'[' => Value::List(self.items()?),
            b'"' => Value::Text(self.string()?),
            _ => self.word()?,
        };
        Ok(Node { offset, value })
    }

    fn fields(&mut self) -> Result<Vec<(Key, Node)>, Malformed> {
        let mut fields: Vec<(Key, Node)> = Vec::new();
        self.offset += 1;
        while self.peek() != b'}' {
            let offset = self.offset;
            let name = self.string()?;
            if fields.iter().any(|(key, _)| key.name == name) {
                return Err(Malformed {
                    position: Position::of(self.text, offset),
                    reason: format!("the field {name:?} is there twice"),
                });
            }
            self.skip(b':');
            fields.push((Key { offset, name }, self.value()?));
            self.skip(b',');
        }
        self.offset += 1;
        Ok(fields)
    }

    fn items(&mut self) -> Result<Vec<Node>, Malformed> {
        let mut items = Vec::new();
        self.offset += 1;
        while self.peek() != b']' {
            items.push(self.value()?);
            self.skip(b',');
        }
        self.offset += 1;
        Ok(items)
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let start = self.offset;
        self.offset += 1;
        loop {
            match self.text.as_bytes().get(self.offset) {
                Some(b'\\') => self.offset += 2,
                Some(b'"') | None => break,
                Some(_) => self.offset += 1,
            }
        }
        self.offset += 1;
        self.decode(start)
    }

    fn word(&mut self) -> Result<Value, Malformed> {
        let start = self.offset;
        let rest = self.text.get(start..).unwrap_or_default();
        let ends = |c: char| c.is_ascii_whitespace() || ",]}".contains(c);
        let word = rest.split(ends).next().unwrap_or_default();
        self.offset += word.len();
        match word {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Ok(Value::Number(self.decode(start)?)),
        }
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, start: usize) -> Result<T, Malformed> {
        let slice = self.text.get(start..self.offset).unwrap_or_default();
        serde_json::from_str(slice).map_err(|error| Malformed {
            position: Position::of(self.text, start),
            ..Malformed::from_json(&error)
        })
    }

    /// The next byte that is not blank; 0 at the end.
    fn peek(&mut self) -> u8 {
        loop {
            match self.text.as_bytes().get(self.offset) {
                Some(byte) if byte.is_ascii_whitespace() => self.offset += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    fn skip(&mut self, byte: u8) {
        if self.peek() == byte {
            self.offset += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found_where_it_stands() {
        let text = "{\n  \"a\": [1, {\"b c\": \"ü\", \"d\": null}],\n  \"e\\n\" : true }\n";
        let tree = Node::parse(text).unwrap();
        let a = Path::default().field("a");
        let cases = [
            (Path::default(), "1:1", ""),
            (a.clone(), "2:8", "a"),
            (a.clone().index(0), "2:9", "a[0]"),
            (a.clone().index(1).field("b c"), "2:20", "a[1][\"b c\"]"),
            (a.clone().index(1).field("d"), "2:30", "a[1].d"),
            (Path::default().field("e\n"), "3:11", "[\"e\\n\"]"),
            // What is not there is looked for in what is.
            (a.clone().index(7).field("x"), "2:8", "a[7].x"),
        ];
        for (path, position, printed) in cases {
            let found = Position::of(text, tree.locate(&path));
            assert_eq!(found.to_string(), position, "{path}");
            assert_eq!(path.to_string(), printed);
        }
        let key = tree.locate_key(&a.clone().index(1), "d").unwrap();
        assert_eq!(Position::of(text, key).to_string(), "2:25");
        assert_eq!(tree.locate_key(&a, "d"), None);
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let deep = "[".repeat(200);
        let cases = [
            ("", "1:1 not valid JSON: EOF while parsing a value"),
            ("{\n  \"a\" 1}", "2:7 not valid JSON: expected `:`"),
            ("{} x", "1:4 not valid JSON: trailing characters"),
            (
                "{\"a\": \"\\ud800\"}",
                "1:14 not valid JSON: unexpected end of hex escape",
            ),
            (
                "{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2}}",
                "2:16 the field \"c\" is there twice",
            ),
            (&deep, "1:128 not valid JSON: recursion limit exceeded"),
        ];
        for (text, expected) in cases {
            let error = Node::parse(text).unwrap_err();
            assert_eq!(format!("{} {}", error.position, error.reason), expected);
        }
    }

    #[test]
    fn a_nul_is_found_in_texts_and_in_names() {
        let found = |text: &str| {
            let tree = Node::parse(text).unwrap();
            tree.find_nul(Path::default()).map(|path| path.to_string())
        };
        assert_eq!(found(r#"{"a": ["b", 1, null, true]}"#), None);
        assert_eq!(
            found(r#"{"a": ["b", "c\u0000d"]}"#).as_deref(),
            Some("a[1]")
        );
        assert_eq!(
            found(r#"{"a": {"b\u0000": 1}}"#).as_deref(),
            Some("a[\"b\\0\"]")
        );
    }
}
