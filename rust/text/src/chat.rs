//! Chat templates. They are Jinja programs written against what transformers' `apply_chat_template` offers: blocks trimmed,
//! no HTML escaping, loop controls, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps`, `generation`
//! blocks, and Python's methods on strings, lists and dictionaries. This file is that environment, on minijinja.

use std::borrow::Cow;
use std::ffi::CString;
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{escape_formatter, AutoEscape, Environment, Error, ErrorKind, Output, State, Value};

use crate::{context, json, methods};

/// Renders `source` with the variables of the JSON object `context`.
pub fn render(name: &str, source: &str, context: &[u8]) -> Result<String, String> {
    let context = context::read(context).map_err(|e| format!("{name}: its variables cannot be read ({e})"))?;
    environment().render_named_str(name, &without_generation_tags(source), context).map_err(|e| describe(name, &e))
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_debug(true); // errors know their line
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("default delimiters are valid"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        minijinja_contrib::add_to_environment(&mut environment);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(print);
        environment.add_filter("tojson", json::tojson);
        environment.add_test("sequence", has_items);
        environment.add_test("iterable", has_items);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
    })
}

/// How `{{ … }}` prints: as minijinja does, which is Python's way, except for the exponents of large and small floats.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => out.write_str(&json::float_text(f64::try_from(value.clone())?)).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// `is sequence` and `is iterable` by Jinja's measure, by which texts, dictionaries and undefined values are both, and none is not.
/// Slices and the results of filters are lazy here; in Python they are lists.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}

/// "file, line 3: message", with the messages of the causes behind it.
fn describe(name: &str, error: &Error) -> String {
    let mut text = name.to_owned();
    if let Some(line) = error.line() {
        text += &format!(", line {line}");
    }
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => text += &format!(": {detail}"),
        (kind, Some(detail)) => text += &format!(": {kind}: {detail}"),
        (kind, None) => text += &format!(": {kind}"),
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// The template's own refusal of the messages that it was given.
fn raise_exception(message: Cow<str>) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.into_owned()))
}

/// The local time as C's strftime prints it, which is what Python's datetime.strftime calls.
fn strftime_now(format: Cow<str>) -> Result<String, Error> {
    let fault = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    // strftime returns 0 both for an empty result and for a full buffer; a leading blank tells the two apart.
    let format = CString::new(format!(" {format}")).map_err(|_| fault("the format holds a NUL"))?;
    let mut buffer = vec![0u8; 4096]; // a date in prose is below 100 characters
    // Safety: the pointers are to live objects of the right type, and the length is the buffer's.
    let written = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut fields: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut fields).is_null() {
            return Err(fault("the system has no local time"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &fields)
    };
    if written == 0 {
        return Err(fault("the result is too long"));
    }
    Ok(String::from_utf8_lossy(&buffer[1..written]).into_owned())
}

/// `{% generation %}` marks the assistant's words for a mask of labels that is not wanted here. It renders its body in a scope
/// of its own, which is what `{% with %}` does. Lines keep their numbers.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let inside = open + 2;
        let Some(length) = rest[inside..].find("%}") else { break };
        let tag = &rest[inside..inside + length];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => word,
        };
        out.push_str(&rest[..inside]);
        if replacement == word {
            // Past the opening alone: what looked like a tag may hold the opening of a true one, in a string or a comment.
            rest = &rest[inside..];
        } else {
            out.push_str(&tag.replacen(word, replacement, 1));
            rest = &rest[inside + length..];
        }
    }
    out.push_str(rest);
    out
}
