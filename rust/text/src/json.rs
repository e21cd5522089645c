//! The `tojson` filter of chat templates: Python's `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, to the
//! byte, because models were trained on its output.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Arguments in transformers' order; any of them may be named.
pub fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?.map(indent_text).transpose()?;
    let separators = argument(2, "separators")?.map(separator_pair).transpose()?;
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;

    let default_item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (default_item.to_owned(), ": ".to_owned()));
    let mut writer = Writer { state, paid: 0, out: String::new(), ensure_ascii, indent, item, key, sort_keys, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

fn fault(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

fn indent_text(indent: Value) -> Result<String, Error> {
    match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        // Python takes a negative width for 0; the bound keeps a hostile template from asking for all the memory.
        None => i64::try_from(indent).map(|width| " ".repeat(width.clamp(0, 64) as usize)),
    }
}

fn separator_pair(separators: Value) -> Result<(String, String), Error> {
    let parts: Vec<String> = separators.try_iter()?.map(|part| part.to_string()).collect();
    <[String; 2]>::try_from(parts).map(|[item, key]| (item, key)).map_err(|_| fault("separators must be a pair".into()))
}

/// Python's repr of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub fn float_text(value: f64) -> String {
    if !value.is_finite() {
        return format!("{value}").to_lowercase();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// As the engine itself counts.
const BYTES_PER_FUEL: u64 = 64;

/// About where Python's recursion limit stops json.dumps.
const DEEPEST: usize = 900;

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    /// Bytes of `out` that were paid for with fuel. The engine charges for the whole when it is there.
    paid: usize,
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    depth: usize,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        self.state.consume_fuel(1 + (self.out.len() - self.paid) as u64 / BYTES_PER_FUEL)?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value)?,
            ValueKind::Map => self.map(value)?,
            kind => return Err(fault(format!("a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            write!(self.out, "{value}").map_err(|e| fault(e.to_string()))
        } else {
            let number = f64::try_from(value.clone())?;
            match number {
                n if n.is_nan() => self.out.push_str("NaN"),
                n if n.is_infinite() => self.out.push_str(if n > 0.0 { "Infinity" } else { "-Infinity" }),
                n => self.out.push_str(&float_text(n)),
            }
            Ok(())
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => self.escape(control),
                wide if self.ensure_ascii && wide > '~' => self.escape(wide),
                plain => self.out.push(plain),
            }
        }
        self.out.push('"');
    }

    /// \uXXXX, twice for what UTF-16 writes as a pair.
    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }

    fn list(&mut self, value: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut empty = true;
        for element in value.try_iter()?.checked() {
            let element = element?;
            self.before_element(empty);
            empty = false;
            self.value(&element)?;
        }
        self.close(']', empty);
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
        if self.sort_keys {
            keys.sort();
        }
        self.open('{')?;
        for (i, key) in keys.iter().enumerate() {
            self.before_element(i == 0);
            self.key(key)?;
            let separator = std::mem::take(&mut self.key);
            self.out.push_str(&separator);
            self.key = separator;
            self.value(&value.get_item(key)?)?;
        }
        self.close('}', keys.is_empty());
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key)?;
                self.out.push('"');
            }
            kind => return Err(fault(format!("keys must be strings, not {kind}"))),
        }
        Ok(())
    }

    fn before_element(&mut self, first: bool) {
        if !first {
            self.out.push_str(&self.item);
        }
        self.new_line();
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        if self.depth == DEEPEST {
            return Err(fault(format!("a value is nested more than {DEEPEST} levels deep")));
        }
        self.depth += 1;
        self.out.push(bracket);
        Ok(())
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.new_line();
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str(indent);
            }
        }
    }
}
