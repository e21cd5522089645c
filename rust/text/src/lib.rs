//! A C ABI over the crates that every Hugging Face model was made with: `tokenizers` for ids, `minijinja` for chat
//! templates. The contract of each function is in `include/lquant_text.h`; this file only moves bytes across the border,
//! the work is in the modules.

mod bounded;
mod chat;
mod context;
mod front_matter;
mod json;
mod methods;
mod sandbox;
mod template_source;
mod tokenizer;
mod values;

use std::borrow::Cow;
use std::os::raw::{c_char, c_int};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use tokenizer::LoadedTokenizer;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const c_char,
    size: usize,
}

#[repr(C)]
pub struct OwnedString {
    data: *mut c_char,
    size: usize,
}

#[repr(C)]
pub struct OwnedIds {
    data: *mut i32,
    size: usize,
}

impl Slice {
    /// Safety: `data` points at `size` readable bytes that outlive the result, or `size` is 0.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            return &[];
        }
        std::slice::from_raw_parts(self.data.cast(), self.size)
    }

    unsafe fn text<'a>(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes())
    }
}

impl From<String> for OwnedString {
    fn from(text: String) -> Self {
        let bytes = Box::leak(text.into_bytes().into_boxed_slice());
        OwnedString { data: bytes.as_mut_ptr().cast(), size: bytes.len() }
    }
}

impl From<Vec<i32>> for OwnedIds {
    fn from(ids: Vec<i32>) -> Self {
        let ids = Box::leak(ids.into_boxed_slice());
        OwnedIds { data: ids.as_mut_ptr(), size: ids.len() }
    }
}

/// What a panic says is for the crates' authors; whoever has the file learns that something in it does not hold together.
const INTERNAL_FAULT: &str = "internal fault: its parts contradict each other";

/// Runs `work`, and turns whatever goes wrong in it, panics included, into a message.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // The caller reports the message, so the default hook's print to stderr would only say it twice. The hook is the whole
    // program's, and threads that work for this call print through it too; no Rust code here runs outside of a function like this.
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let said = payload.downcast_ref::<bounded::Refusal>().map_or(INTERNAL_FAULT, |refusal| refusal.0);
        Err(said.to_owned())
    })
}

/// Safety: `out` and `error` point at writable objects.
unsafe fn deliver<T, O: From<T>>(result: Result<T, String>, out: *mut O, error: *mut OwnedString) -> c_int {
    match result {
        Ok(value) => out.write(value.into()),
        Err(message) => {
            error.write(message.into());
            return 0;
        }
    }
    1
}

/// # Safety
/// `text` came from this library and was not freed before.
#[no_mangle]
pub unsafe extern "C" fn lquant_string_free(text: OwnedString) {
    if !text.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(text.data.cast::<u8>(), text.size)));
    }
}

/// # Safety
/// `ids` came from this library and was not freed before.
#[no_mangle]
pub unsafe extern "C" fn lquant_ids_free(ids: OwnedIds) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}

/// # Safety
/// The slices are valid; `out` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_open(
    json: Slice,
    added_tokens: Slice,
    out: *mut *mut LoadedTokenizer,
    error: *mut OwnedString,
) -> c_int {
    let result = guarded(|| LoadedTokenizer::open(json.bytes(), added_tokens.bytes()));
    deliver(result.map(|tokenizer| Box::into_raw(Box::new(tokenizer))), out, error)
}

/// # Safety
/// `tokenizer` came from `lquant_tokenizer_open` and was not closed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_close(tokenizer: *mut LoadedTokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// `tokenizer` is open, `texts` holds `count` valid slices, `ends` has room for `count`, `out` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_encode(
    tokenizer: *const LoadedTokenizer,
    texts: *const Slice,
    count: usize,
    add_special_tokens: c_int,
    out: *mut OwnedIds,
    ends: *mut usize,
    error: *mut OwnedString,
) -> c_int {
    let result = guarded(|| {
        let texts = (0..count).map(|i| (*texts.add(i)).text()).collect();
        let (ids, row_ends) = (*tokenizer).encode(texts, add_special_tokens != 0)?;
        for (i, end) in row_ends.into_iter().enumerate() {
            ends.add(i).write(end);
        }
        Ok(ids)
    });
    deliver(result, out, error)
}

/// # Safety
/// `tokenizer` is open, `ids` holds `count` ids, `out` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_decode(
    tokenizer: *const LoadedTokenizer,
    ids: *const i32,
    count: usize,
    skip_special_tokens: c_int,
    out: *mut OwnedString,
    error: *mut OwnedString,
) -> c_int {
    let result = guarded(|| {
        let ids = if count == 0 { &[][..] } else { std::slice::from_raw_parts(ids, count) };
        (*tokenizer).decode(ids, skip_special_tokens != 0)
    });
    deliver(result, out, error)
}

/// # Safety
/// `tokenizer` is open, `token` is valid, `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_token_id(tokenizer: *const LoadedTokenizer, token: Slice, out: *mut i32) -> c_int {
    match guarded(|| Ok((*tokenizer).token_id(&token.text()))) {
        Ok(Some(id)) => {
            out.write(id);
            1
        }
        _ => 0,
    }
}

/// # Safety
/// `tokenizer` is open, `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_token(tokenizer: *const LoadedTokenizer, id: i32, out: *mut OwnedString) -> c_int {
    match guarded(|| Ok((*tokenizer).token(id))) {
        Ok(Some(token)) => {
            out.write(token.into());
            1
        }
        _ => 0,
    }
}

/// # Safety
/// `tokenizer` is open.
#[no_mangle]
pub unsafe extern "C" fn lquant_tokenizer_vocab_size(tokenizer: *const LoadedTokenizer) -> usize {
    guarded(|| Ok((*tokenizer).vocab_size())).unwrap_or(0)
}

/// # Safety
/// The slices are valid; `out` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_chat_render(source: Slice, context: Slice, out: *mut OwnedString, error: *mut OwnedString) -> c_int {
    deliver(guarded(|| chat::render(&source.text(), context.bytes())), out, error)
}

/// # Safety
/// `text` is valid; `out` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn lquant_front_matter(text: Slice, out: *mut OwnedString, error: *mut OwnedString) -> c_int {
    deliver(guarded(|| front_matter::front_matter(&text.text())), out, error)
}
