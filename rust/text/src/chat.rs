//! Chat templates. They are Jinja programs written against what transformers' `apply_chat_template` offers: blocks trimmed,
//! no HTML escaping, loop controls, `raise_exception`, `strftime_now`, `tojson` as Python's `json.dumps`, `generation`
//! blocks, and Python's methods on strings, lists and dictionaries. This file is that environment, on minijinja.
//!
//! They come from strangers, so each rendering has limits: the engine's fuel bounds the work and the memory, and what fuel does not
//! know is bounded in `template_source` (the source), `values` (what is kept) and `sandbox` (stack and time).

use std::borrow::Cow;
use std::ffi::CString;
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{escape_formatter, AutoEscape, Environment, Error, ErrorKind, Output, State, Value};

use crate::{context, json, methods, sandbox, template_source, values};

/// One unit of fuel is a step of the template or 64 bytes of text, so this is 256 MB at most. A chat of ten messages takes some hundred.
const FUEL: u64 = 4_000_000;
/// More of it for each byte of the messages: some templates look through all messages again for each of them.
const FUEL_PER_BYTE: u64 = 128;
/// However long the messages are: 1 GB.
const MOST_FUEL: u64 = 16_000_000;
/// No model reads as much in one chat.
const LONGEST_OUTPUT: usize = 64 << 20;
/// What a template may write of its own, beside OUTPUT_PER_BYTE of the messages, which most write once. The longest tool instructions have some
/// ten thousand bytes. Cutting a text into tokens takes hundreds of bytes for each of its own, and where there is no memory left the program ends.
const LONGEST_OWN_OUTPUT: usize = 1 << 20;
const OUTPUT_PER_BYTE: usize = 8;
/// The fuel lasts for a second or two; this is for work that costs none.
const SECONDS: u64 = 4;
const BYTES_PER_SECOND: u64 = 4 << 20;

/// Renders `source` with the variables of the JSON object `context`. An error is what follows the template's name in a sentence:
/// "line 3: …", or the message alone.
pub fn render(source: &str, context: &[u8]) -> Result<String, String> {
    let seconds = SECONDS + context.len() as u64 / BYTES_PER_SECOND;
    let (source, context) = (source.to_owned(), context.to_owned());
    sandbox::run(seconds, move || render_here(&source, &context))?
        .unwrap_or_else(|| Err(format!("the template was still at work after {seconds} seconds")))
}

fn render_here(source: &str, context: &[u8]) -> Result<String, String> {
    let fuel = (FUEL + FUEL_PER_BYTE * context.len() as u64).min(MOST_FUEL);
    let longest = LONGEST_OWN_OUTPUT.saturating_add(context.len().saturating_mul(OUTPUT_PER_BYTE)).min(LONGEST_OUTPUT);
    let context = context::read(context).map_err(|e| format!("its variables cannot be read ({e})"))?;
    let mut environment = environment().clone();
    environment.set_fuel(Some(fuel));
    let source = template_source::prepare(source, environment.syntax().clone(), GUARD)?;
    let text = environment.render_str(&source, context).map_err(|e| describe(&e, fuel))?;
    if text.len() > longest {
        return Err(format!("the template writes {} bytes, more than the {longest} that it may for these messages", text.len()));
    }
    Ok(text)
}

/// The name of `values::kept` in the engine; no name that a template could have of its own.
const GUARD: &str = "lquant_kept";

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
        environment.add_filter(GUARD, values::kept);
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
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => out.write_str(&values::printed(state, value)?).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// `is sequence` and `is iterable` by Jinja's measure, by which texts, dictionaries and undefined values are both, and none is not.
/// Slices and the results of filters are lazy here; in Python they are lists.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}

/// "line 3: message", with the messages of the causes behind it.
fn describe(error: &Error, fuel: u64) -> String {
    let mut parts: Vec<String> = error.line().map(|line| format!("line {line}")).into_iter().collect();
    if out_of_fuel(error) {
        parts.push(format!("the template does more than the {fuel} steps, of 64 bytes each, that it may take for these messages"));
        return parts.join(": ");
    }
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => parts.push(detail.to_owned()),
        (kind, Some(detail)) => parts.push(format!("{kind}: {detail}")),
        (kind, None) => parts.push(kind.to_string()),
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        parts.push(error.to_string());
        cause = error.source();
    }
    parts.join(": ")
}

fn out_of_fuel(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        cause = error.source();
    }
    false
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
