//! Values that a template keeps. Each `{% set %}` can wrap the value of the one before, in a loop hundreds of thousands of times, and
//! whatever descends into the result (printing, comparing, freeing) overflows the stack. So what is kept is bounded in depth, and
//! lazy lists, which would wrap each other unseen, become plain ones, as they are in Python.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Far deeper than messages may be and than `tojson` follows; what descends this far takes some megabytes of the sandbox's stack.
const DEEPEST: usize = 1200;

/// A filter on the value of every `{% set %}`: the value, or an error for one that is nested too deeply. Each item costs fuel.
/// `in_namespace`: it is to be kept in a namespace, which outlives the loop that sets it. So a namespace, which may then hold itself, and
/// the objects that hold others unseen (loops, macros) cannot be kept there.
pub fn kept(state: &State, value: Value, in_namespace: Option<bool>) -> Result<Value, Error> {
    let guard = Guard { state, in_namespace: in_namespace.unwrap_or(false) };
    Ok(guard.bounded(&value, DEEPEST)?.unwrap_or(value))
}

struct Guard<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    in_namespace: bool,
}

impl Guard<'_, '_, '_> {
    /// None: as it is.
    fn bounded(&self, value: &Value, levels: usize) -> Result<Option<Value>, Error> {
        let kind = value.kind();
        // There is no other way to tell the engine's own objects apart.
        let name = value.as_object().map_or("", |object| object.type_name());
        let has_parts = matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
        let is_closed = kind == ValueKind::Plain || (kind == ValueKind::Map && value.try_iter().is_err()); // macros, cyclers
        let is_own = is_closed || name.ends_with("::Namespace") || name.ends_with("::Loop");
        if is_own && self.in_namespace {
            return Err(fault(format!("a namespace can keep texts, numbers, lists and dictionaries, not a {}", own_name(name).to_lowercase())));
        }
        if is_closed || !has_parts {
            return Ok(None);
        }
        if levels == 0 {
            return Err(fault(format!("a value is nested more than {DEEPEST} levels deep, which neither printing nor tojson follows")));
        }
        if kind == ValueKind::Map {
            let changed = self.bounded_map(value, levels - 1)?;
            return Ok(changed.filter(|_| !is_own));
        }
        let mut changed = kind == ValueKind::Iterable;
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            self.state.consume_fuel(1)?;
            let item = item?;
            let new = self.bounded(&item, levels - 1)?;
            changed |= new.is_some();
            items.push(new.unwrap_or(item));
        }
        Ok(changed.then(|| match value.downcast_object_ref::<Tuple>() {
            Some(_) => Value::from(Tuple::from(items)),
            None => Value::from(items),
        }))
    }

    fn bounded_map(&self, value: &Value, levels: usize) -> Result<Option<Value>, Error> {
        let mut changed = false;
        let mut pairs = Vec::new();
        for key in value.try_iter()?.checked() {
            self.state.consume_fuel(1)?;
            let key = key?;
            let item = value.get_item(&key)?;
            let new = self.bounded(&item, levels)?;
            changed |= new.is_some();
            pairs.push((key, new.unwrap_or(item)));
        }
        Ok(changed.then(|| Value::from_pairs(pairs)))
    }
}

/// A list or dictionary as `{{ … }}` prints it. The engine counts text once it is there; a lazy list may be longer than memory, so here the
/// fuel that is left ends the printing.
pub fn printed(state: &State, value: &Value) -> Result<String, Error> {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(64));
    let mut out = Short { text: String::new(), left: usize::try_from(left).unwrap_or(usize::MAX) };
    match write!(out, "{value}") {
        Ok(()) => Ok(out.text),
        Err(_) => Err(ErrorKind::OutOfFuel.into()),
    }
}

struct Short {
    text: String,
    left: usize,
}

impl Write for Short {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        self.left = self.left.checked_sub(part.len()).ok_or(std::fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}

fn own_name(type_name: &str) -> &str {
    type_name.rsplit("::").next().unwrap_or(type_name)
}

fn fault(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
