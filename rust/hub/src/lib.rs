//! A C ABI over `hf-hub` and `parquet`. The contract of each function is in `include/lquant_hub.h`; this file moves bytes across the
//! border, the work is in the modules.

mod data_set;
mod download;
mod model;
mod parquet_rows;
mod session;
mod upload;

use std::any::Any;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde::Serialize;
use serde::de::DeserializeOwned;

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
#[derive(Clone, Copy)]
pub struct Events {
    report: Option<extern "C" fn(*mut c_void, Slice, u64, u64) -> c_int>,
    context: *mut c_void,
}

impl Events {
    /// False when the caller wants the work to stop.
    pub fn report(&self, text: &str, done: u64, total: u64) -> bool {
        let slice = Slice { data: text.as_ptr().cast(), size: text.len() };
        self.report.is_none_or(|report| report(self.context, slice, done, total) == 0)
    }
}

impl Slice {
    /// Safety: `data` points at `size` readable bytes that outlive the result, or `size` is 0.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.data.cast(), self.size) } }
    }
}

impl From<String> for OwnedString {
    fn from(text: String) -> Self {
        let bytes = Box::leak(text.into_bytes().into_boxed_slice());
        OwnedString { data: bytes.as_mut_ptr().cast(), size: bytes.len() }
    }
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    format!("internal fault ({})", text.unwrap_or("no message"))
}

/// Parses the request, runs `work` and hands out its answer or the sentence that says what went wrong, panics included.
///
/// Safety: the request is a valid slice, `out` and `error` are writable.
unsafe fn serve<Q: DeserializeOwned, A: Serialize>(
    request: Slice,
    out: *mut OwnedString,
    error: *mut OwnedString,
    work: impl FnOnce(Q) -> Result<A, String>,
) -> c_int {
    // The caller reports the message; the default hook would print it too.
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let answer = catch_unwind(AssertUnwindSafe(|| {
        let request = serde_json::from_slice(unsafe { request.bytes() }).map_err(|e| format!("internal fault (request: {e})"))?;
        serde_json::to_string(&work(request)?).map_err(|e| format!("internal fault (answer: {e})"))
    }))
    .unwrap_or_else(|payload| Err(panic_message(payload)));
    match answer {
        Ok(text) => unsafe { out.write(text.into()) },
        Err(text) => {
            unsafe { error.write(session::without_token(text).into()) };
            return 0;
        }
    }
    1
}

/// # Safety
/// `text` came from this library and was not freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lquant_hub_string_free(text: OwnedString) {
    if !text.data.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(text.data.cast::<u8>(), text.size)) });
    }
}

/// Each function of the header is one of these.
macro_rules! entry {
    ($name:ident, $work:expr) => {
        /// # Safety
        /// The request is a valid slice, `out` and `error` are writable.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(request: Slice, events: Events, out: *mut OwnedString, error: *mut OwnedString) -> c_int {
            unsafe { serve(request, out, error, |request| $work(request, events)) }
        }
    };
}

entry!(lquant_hub_model, model::fetch);
entry!(lquant_hub_rows, data_set::fetch);
entry!(lquant_hub_parquet, parquet_rows::convert);
entry!(lquant_hub_upload, upload::send);
