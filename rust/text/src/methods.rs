//! Python's methods on the values of a template: those of minijinja-contrib, and the few more that chat templates call.

use minijinja::value::{from_args, Tuple};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::values::printed;

pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => string_method(state, text, method, args).unwrap_or_else(|| pycompat::unknown_method_callback(state, value, method, args)),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// None when the method is not one of ours.
fn string_method(state: &State, text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => from_args(args).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => from_args(args).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => separator(args).map(|separator| match text.split_once(separator) {
            Some((before, after)) => triple(before, separator, after),
            None => triple(text, "", ""),
        }),
        "rpartition" => separator(args).map(|separator| match text.rsplit_once(separator) {
            Some((before, after)) => triple(before, separator, after),
            None => triple("", "", text),
        }),
        "rsplit" => rsplit(text, args),
        "join" => join(state, text, args),
        "format" => match pay_for_widths(state, text) {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
        _ => return None,
    })
}

/// As the engine's filter of this name, which pays for each item before it is there.
fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (values,): (&Value,) = from_args(args)?;
    let mut out = String::new();
    for (i, value) in values.try_iter()?.checked().enumerate() {
        let value = value?;
        let part = printed(state, &value)?;
        let separator = if i == 0 { "" } else { separator };
        state.consume_fuel(1 + (separator.len() + part.len()) as u64 / 64)?;
        out.push_str(separator);
        out.push_str(&part);
    }
    Ok(Value::from(out))
}

/// A width or precision in a field of `str.format` makes that much text before the engine counts it.
fn pay_for_widths(state: &State, format: &str) -> Result<(), Error> {
    for field in format.split('{').skip(1) {
        let field = field.split('}').next().unwrap_or_default();
        for number in field.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
            let width = number.parse::<u64>().unwrap_or(u64::MAX);
            state.consume_fuel(width / 64)?;
        }
    }
    Ok(())
}

fn triple(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before.into(), separator.into(), after.into()]))
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    // `most` cuts make `most` + 1 pieces; any negative number means no bound.
    let pieces = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut found: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => text.rsplitn(pieces, separator).collect(),
        None => rsplit_whitespace(text, pieces),
    };
    found.reverse();
    Ok(Value::from_iter(found))
}

/// The last words first; the piece that remains after `pieces` - 1 words keeps its inner blanks.
fn rsplit_whitespace(text: &str, pieces: usize) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let cut = if found.len() + 1 < pieces { rest.rfind(char::is_whitespace) } else { None };
        let Some(cut) = cut else {
            found.push(rest);
            break;
        };
        let blank = rest[cut..].chars().next().map_or(1, char::len_utf8);
        found.push(&rest[cut + blank..]);
        rest = rest[..cut].trim_end();
    }
    found
}
