//! Reads the config's types from a [`Node`], with errors that a person can act on.
//!
//! serde's own messages echo the value that was found, which may be a secret in the wrong field,
//! and speak of Rust's types. These name kinds of JSON values and the known fields.

use std::fmt;

use serde::Deserializer;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Expected, IntoDeserializer, Unexpected, Visitor};

use super::tree::{Node, Value};

/// Why a value does not fit its type.
#[derive(Debug)]
pub(super) enum Misfit {
    /// An object has a field that its type has not.
    UnknownField {
        /// The name as written.
        field: String,
        /// The names that would be right.
        known: &'static [&'static str],
    },
    /// A field that must be there is not.
    MissingField(&'static str),
    /// Anything else, as a phrase that follows the value's path.
    Other(String),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField { field, known } => {
                let field = quoted(field);
                match nearest(&field, known) {
                    Some(near) => write!(f, "there is no such field; did you mean \"{near}\"?"),
                    None => write!(f, "there is no such field; known are {}", list(known)),
                }
            }
            Self::MissingField(_) => f.write_str("is missing"),
            Self::Other(phrase) => f.write_str(phrase),
        }
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(phrase: T) -> Self {
        Self::Other(phrase.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = match expected.to_string() {
            text if text.starts_with("struct ") || text == "a map" => "an object".to_owned(),
            text if text == "a sequence" => "a list".to_owned(),
            text if text.contains("string") || text.contains("identifier") => "a text".to_owned(),
            text if text.starts_with(['u', 'i']) => "a whole number".to_owned(),
            text if text.starts_with('f') => "a number".to_owned(),
            text => text,
        };
        Self::Other(format!("is {}, must be {expected}", kind(&found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        // Only ever a number out of range: texts are checked by this crate's own code.
        let expected = match &*expected.to_string() {
            "u32" => "a whole number from 0 to 4294967295".to_owned(),
            "u64" => "a whole number, not negative".to_owned(),
            other => other.to_owned(),
        };
        Self::Other(format!("{} does not fit, must be {expected}", kind(&found)))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::Other(unknown_word(found, known))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownField {
            field: field.to_owned(),
            known,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field)
    }
}

/// The phrase for a word that is none of the `known` ones.
pub(super) fn unknown_word(found: &str, known: &[&str]) -> String {
    let hint = nearest(found, known).map(|near| format!(", did you mean \"{near}\"?"));
    format!(
        "{} is not known; known: {}{}",
        quoted(found),
        list(known),
        hint.unwrap_or_default()
    )
}

/// A found text for a message: escaped, short, and without what could be a secret in a URL.
pub(super) fn quoted(text: &str) -> String {
    if text.contains('@') {
        return "this text".to_owned();
    }
    if text.chars().count() > 80 {
        let start: String = text.chars().take(60).collect();
        return format!("{start:?}…");
    }
    format!("{text:?}")
}

fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.trim_matches('"').to_ascii_lowercase();
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(&word, known), *known))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

fn list(words: &[&str]) -> String {
    words.join(", ")
}

fn kind(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(_) | Unexpected::Char(_) => "a text".to_owned(),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        other => other.to_string(),
    }
}

fn found(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Unexpected::Unsigned(value),
            (None, Some(value)) => Unexpected::Signed(value),
            (None, None) => Unexpected::Float(number.as_f64().unwrap_or(f64::INFINITY)),
        },
        Value::Text(text) => Unexpected::Str(text),
        Value::List(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::INFINITY)),
            },
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Value::Object(fields) => visitor.visit_map(MapDeserializer::new(
                fields.iter().map(|(key, node)| (key.name.as_str(), node)),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.value {
            Value::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            // All enums of the config are words.
            other => Err(Misfit::Other(format!(
                "is {}, must be one of: {}",
                kind(&found(other)),
                list(variants)
            ))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.value {
            // A derived visitor would take a list as well, its fields without names.
            list @ Value::List(_) => Err(de::Error::invalid_type(found(list), &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Misfit> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
